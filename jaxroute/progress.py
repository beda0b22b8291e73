"""Watches a run: says when the simulator meets what it cannot represent, or when nothing will happen any more."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.state import ClusterState
from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.workload.table import RequestTable

PATIENCE_S = 3600.0
"""Simulated seconds for which a router may hold requests while the whole fleet is idle."""

MOST_INTERVALS = 2**30
"""Where int32 interval counts end."""


class VoidRunError(InputError):
    """The run met something that the simulator cannot represent; its numbers would be wrong."""


def check_progress(
    clusters: ClusterState, names: list[str], table: RequestTable, config: ClusterConfig, dt: float
) -> None:
    """Checks a batch of fleets ([E] leaves), one for each name.

    Raises:
      VoidRunError: a full waiting queue, a request that can never run, too many engine steps in an interval, or a
        router that holds on to requests for ever.
    """
    engines = clusters.engines
    held = np.asarray(clusters.arrived) - np.asarray(clusters.dispatched)
    busy = np.asarray(engines.running).sum(-1) + np.asarray(engines.queue.count).sum(-1)
    now_s = np.asarray(clusters.now) * dt
    for lane, name in enumerate(names):
        place = f"policy {name} on {table.name}"
        _reject(
            engines.overflow[lane],
            f"{place}: instance {{}} was sent more than {config.queue_capacity} requests at a time; raise "
            "queue_capacity (a dropped request would be a wrong result)",
        )
        _reject(
            engines.stuck[lane],
            f"{place}: a preempted request at instance {{}} can never be resumed: its prompt and what it has generated "
            "exceed the KV cache or max_num_batched_tokens; raise that, or use --overlong clip or drop",
        )
        _reject(
            engines.overrun[lane],
            f"{place}: instance {{}} ran more than {config.max_steps_per_interval} engine steps in one interval; "
            "lower dt or raise max_steps_per_interval",
        )
        waited = now_s[lane] - float(table.arrival_s[-1])
        if held[lane] > 0 and busy[lane] == 0 and waited > PATIENCE_S:
            raise VoidRunError(
                f"{place}: the router still holds {held[lane]} requests {waited:.0f} s after the last arrival while "
                "the whole fleet is idle; the policy never dispatches them"
            )


def interval_limit(tables: Sequence[RequestTable], profiles: Sequence[StepProfile], dt: float) -> int:
    """Router intervals within which any run over one of the tables ends, unless its router holds on to requests.

    Twice the time of serving them one after the other on the slowest server, after the last arrival and `PATIENCE_S`;
    a power of two, so that workloads of like length share a compiled program.
    """
    longest_s = 0.0
    for table in tables:
        prompt, output = int(table.prompt_tokens.max()), int(table.output_tokens.max())
        for profile in profiles:
            prefills_s = len(table) * profile.step_ms([(prompt, 0)], []) / 1e3
            decodes_s = int(table.output_tokens.sum()) * profile.step_ms([], [prompt + output]) / 1e3
            longest_s = max(longest_s, float(table.arrival_s[-1]) + 2 * (prefills_s + decodes_s))
    intervals = (longest_s + PATIENCE_S) / dt
    return min(MOST_INTERVALS, 2 ** math.ceil(math.log2(intervals + 2)))


def _reject(flags: object, message: str) -> None:
    flags = np.asarray(flags)
    if flags.any():
        raise VoidRunError(message.format(int(np.argmax(flags))))
