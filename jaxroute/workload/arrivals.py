"""When requests arrive: generated processes, and re-timing of given ones."""

from __future__ import annotations

import math

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.table import RequestTable

PROCESSES = ("poisson", "gamma", "constant")


def arrival_times(process: str, count: int, rate: float, rng: np.random.Generator, *, cv: float = 1.0) -> np.ndarray:
    """[count] float64, ascending arrival times in seconds, the first one gap after 0.

    The gaps are drawn at rate 1 and scaled, so that the same generator gives the same pattern at every rate.

    Args:
      process: `poisson`, `gamma` (gaps of the given coefficient of variation) or `constant`.
      count: requests.
      rate: mean requests per second.
      rng: consumed.
      cv: coefficient of variation of the gaps under `gamma`; above 1 is burstier than Poisson.

    Raises:
      InputError: an unknown process, or a rate or cv that is not a finite number above 0.
    """
    if process not in PROCESSES:
        raise InputError(f"unknown arrival process {process!r}; known: {', '.join(PROCESSES)}")
    check_rate(rate)
    if not (math.isfinite(cv) and cv > 0):
        raise InputError(f"cv is {cv!r}, must be a finite number above 0")
    if process == "constant":
        gaps = np.ones(count)
    elif process == "poisson":
        gaps = rng.exponential(1.0, count)
    else:
        gaps = rng.gamma(cv**-2, cv**2, count)
    return np.cumsum(gaps) / rate


def retime(table: RequestTable, rate: float) -> RequestTable:
    """The table stretched or squeezed to a mean rate (requests per second); ratios of gaps, so burstiness, stay.

    Raises:
      InputError: all requests arrive at once, so that no stretching gives them a rate; or a bad rate.
    """
    check_rate(rate)
    if not math.isfinite(table.mean_rate):
        raise InputError(f"{table.name}: all requests arrive at the same time, so it cannot be re-timed; omit --rate")
    return table.replace(arrival_s=table.arrival_s * (table.mean_rate / rate))


def check_rate(rate: float) -> None:
    """Raises InputError unless the rate is a finite number of requests per second above 0."""
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"rate is {rate!r}, must be a finite number of requests per second above 0")
