"""How far two runs of the same requests are apart: the simulator from real servers, or these from themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxroute import metrics
from jaxroute.metrics import relative_change_percent
from jaxroute.results import RunResult

QUANTITIES = {"e2e": metrics.e2e_s, "ttft": metrics.ttft_s, "tbt": metrics.tbt_mean_s}
"""Per-request quantities, [N] seconds each."""

STATISTICS = ("mean", "p50", "p99")


@dataclasses.dataclass(frozen=True)
class Difference:
    """One quantity of a run against the same of another one.

    Attributes:
      live_s: the other one's statistics, seconds, by the names of `STATISTICS`.
      simulated_s: those of the run.
      error_percent: how far the run's are from the other one's, % of the latter.
      scatter_p50_percent, scatter_p95_percent: percentiles over the requests of the difference's size, % of the other
        run's value for the same request.
      correlation: of the requests' values (Pearson); NaN where all are alike.
    """

    live_s: Mapping[str, float]
    simulated_s: Mapping[str, float]
    error_percent: Mapping[str, float]
    scatter_p50_percent: float
    scatter_p95_percent: float
    correlation: float


@dataclasses.dataclass(frozen=True)
class Preemptions:
    """Preemptions at each instance, [I], and how far their sums are apart in % (NaN where none was live)."""

    live: tuple[int, ...]
    simulated: tuple[int, ...]

    @property
    def error_percent(self) -> float:
        """Of the sums."""
        live, simulated = sum(self.live), sum(self.simulated)
        return 0.0 if live == simulated else relative_change_percent(simulated, live)


def differences(simulated: RunResult, live: RunResult) -> dict[str, Difference]:
    """Every quantity of `QUANTITIES`, of the same requests in the same order."""
    return {name: difference(of(simulated), of(live)) for name, of in QUANTITIES.items()}


def difference(simulated_s: np.ndarray, live_s: np.ndarray) -> Difference:
    """One quantity, both [N] seconds; a request without a value (NaN) is left out.

    Raises:
      ValueError: no request has one.
    """
    known = ~(np.isnan(simulated_s) | np.isnan(live_s))
    simulated_s, live_s = simulated_s[known], live_s[known]
    if not known.any():
        raise ValueError("no request has the quantity")
    scatter = 100 * np.abs(simulated_s - live_s) / np.maximum(live_s, 1e-9)
    ours, theirs = statistics(simulated_s), statistics(live_s)
    varies = np.ptp(simulated_s) > 0 and np.ptp(live_s) > 0
    return Difference(
        live_s=theirs,
        simulated_s=ours,
        error_percent={name: relative_change_percent(ours[name], theirs[name]) for name in STATISTICS},
        scatter_p50_percent=float(np.percentile(scatter, 50)),
        scatter_p95_percent=float(np.percentile(scatter, 95)),
        correlation=float(np.corrcoef(simulated_s, live_s)[0, 1]) if varies else float("nan"),
    )


def statistics(values_s: np.ndarray) -> dict[str, float]:
    """Mean and percentiles."""
    p50, p99 = np.percentile(values_s, (50, 99))
    return {"mean": float(values_s.mean()), "p50": float(p50), "p99": float(p99)}


def noise_floor(runs: Sequence[RunResult]) -> dict[str, dict[str, float]]:
    """How far repeats of a live run are from each other: the largest difference of any two, %, by quantity."""
    pairs = [(one, other) for index, one in enumerate(runs) for other in runs[:index]]
    made = [differences(one, other) for one, other in pairs]
    return {
        name: {stat: max(abs(each[name].error_percent[stat]) for each in made) for stat in STATISTICS}
        for name in QUANTITIES
        if made
    }


def preemptions_at(result: RunResult) -> tuple[int, ...]:
    """[I] preemptions at each instance of a simulated run."""
    records = result.records
    counts = np.bincount(records.instance, weights=records.preemptions, minlength=result.instances)
    return tuple(int(count) for count in counts)
