"""What training should do on devices that are not here: a measured update, and assumptions about the links.

An expectation, not a measurement. Every device simulates as many environments as the one that was measured, and the
devices wait for every sum: nothing of it is hidden behind computation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Links:
    """Assumptions about the links between the devices; by default those of servers of eight H100, cautiously.

    All-reduces go round all devices at the speed of the slowest link; small ones up and down a tree.
    """

    per_host: int = 8
    """Devices of one server."""
    host_gb_s: float = 300.0
    """Bandwidth between the devices of a server, GB/s each way (NVLink 4 has 450)."""
    host_us: float = 4.0
    """Latency of one hop between them, microseconds."""
    network_gb_s: float = 40.0
    """Bandwidth between servers for each device, GB/s each way (a 400 Gb/s port has 50)."""
    network_us: float = 8.0
    """Latency of one hop between servers, microseconds."""

    def all_reduce_s(self, size: int, devices: int) -> float:
        """Seconds in which `size` bytes of every device are summed over all of them."""
        if devices == 1:
            return 0.0
        inside = min(devices, self.per_host)
        hosts = math.ceil(devices / self.per_host)
        bandwidth = (self.network_gb_s if hosts > 1 else self.host_gb_s) * 1e9
        hops_us = math.ceil(math.log2(inside)) * self.host_us + math.ceil(math.log2(hosts)) * self.network_us
        return 2 * (devices - 1) / devices * size / bandwidth + 2 * hops_us * 1e-6


@dataclasses.dataclass(frozen=True)
class Expected:
    """Of a number of devices.

    Attributes:
      devices: how many.
      all_reduce_s: seconds that the sums of one update take.
      update_s: seconds of the whole update.
      env_steps_per_s: router intervals of all environments together.
      efficiency: over that of as many single devices.
    """

    devices: int
    all_reduce_s: float
    update_s: float
    env_steps_per_s: float
    efficiency: float


def expect(sums: Mapping[int, int], *, update_s: float, env_steps: int, devices: int, links: Links) -> Expected:
    """What to expect of a number of devices.

    Args:
      sums: of one update: bytes of a sum -> how many of that size.
      update_s: seconds of an update on one device.
      env_steps: router intervals that one device simulates in it.
      devices: how many.
      links: between them.
    """
    all_reduce_s = sum(count * links.all_reduce_s(size, devices) for size, count in sums.items())
    whole_s = update_s + all_reduce_s
    return Expected(devices, all_reduce_s, whole_s, devices * env_steps / whole_s, update_s / whole_s)
