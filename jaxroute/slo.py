"""Service-level objectives: which requests were served as they should be, and the share of those (goodput)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxroute import metrics
from jaxroute.errors import InputError
from jaxroute.results import RunResult

ATTAINMENT = 0.99
"""Share of the requests that a fleet within its capacity serves within the objective."""


@dataclasses.dataclass(frozen=True)
class Slo:
    """What a client is promised.

    The defaults are round numbers for chat: an answer begins within 2 s, and comes faster than people read (10 tokens a
    second).

    Attributes:
      ttft_s: longest time to the first token, seconds.
      tbt_s: longest mean time between the tokens of a request, seconds.
    """

    ttft_s: float = 2.0
    tbt_s: float = 0.1

    def __post_init__(self) -> None:
        for name, value in (("ttft", self.ttft_s), ("tbt", self.tbt_s)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"--slo-{name}: is {value!r}, must be a finite number of seconds above 0")


def attained(result: RunResult, slo: Slo) -> np.ndarray:
    """[N] bool, which requests were within both bounds; one of a single token has no time between tokens."""
    tbt = metrics.tbt_mean_s(result)
    return (metrics.ttft_s(result) <= slo.ttft_s) & (np.isnan(tbt) | (tbt <= slo.tbt_s))


def goodput(result: RunResult, slo: Slo) -> float:
    """Share of the requests within both bounds, 0 to 1."""
    return float(attained(result, slo).mean())
