"""What the static parts of every algorithm can do: discount by seconds, and sum over the devices."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxroute.train.config import TrainConfig


class OnMesh:
    """Base of the learners, which are frozen dataclasses with these fields.

    Attributes:
      config: the run's.
      axis: mesh axis over which lanes are spread, or None.
    """

    config: TrainConfig
    axis: str | None

    def discount(self, seconds: float, group: int) -> float:
        """Factor per interval of something that falls to 1/e within `seconds`."""
        return math.exp(-self.config.fleets[group].dt / seconds)

    def total(self, value: Any) -> Any:
        """Sums over the devices."""
        return value if self.axis is None else jax.lax.psum(value, self.axis)
