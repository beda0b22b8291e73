"""Paired comparisons over seeds, with bootstrap intervals.

Every policy has seen the same requests of a seed, so seeds are resampled whole: what makes a seed hard for all policies
cancels out. The difference of two policies is that of their means over the seeds, in % of the reference's mean.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
RESAMPLING_SEED = 0

FEWEST_SEEDS = 6
"""With fewer, all seeds agree by chance in more than 5 % of comparisons (2^(1 - n)): nothing is significant."""

COMPARED = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "makespan_s")
"""Quantities that are compared, by their names in `evaluation.csv`."""

RANKED_BY = "e2e_mean_s"
"""The quantity that decides which heuristic is the best."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bootstrap interval; `low` and `high` are NaN with one seed.

    Attributes:
      value: of all seeds.
      low, high: ends of the interval.
      seeds: it rests on.
    """

    value: float
    low: float
    high: float
    seeds: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0, and rests on enough seeds to say so."""
        return self.seeds >= FEWEST_SEEDS and (self.low > 0 or self.high < 0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One policy in one cell.

    Attributes:
      means: mean over the seeds of every numeric column, by name, with the interval of that mean.
      against_reference: change of each of `COMPARED` against round robin, %.
      against_best: change of each of `COMPARED` against the best heuristic, %.
    """

    means: Mapping[str, Interval]
    against_reference: Mapping[str, Interval]
    against_best: Mapping[str, Interval]


def mean_interval(values: np.ndarray) -> Interval:
    """The mean of [seeds] values."""
    values = np.asarray(values, np.float64)
    resampled = values[_resamples(len(values))].mean(-1)
    return _interval(float(values.mean()), resampled, len(values))


def relative_difference(values: np.ndarray, reference: np.ndarray) -> Interval:
    """Change of the mean of `values` against that of `reference`, both [seeds] of the same seeds, in % of the latter.

    NaN where the reference's mean is 0.
    """
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    if reference.mean() == 0:
        return Interval(math.nan, math.nan, math.nan, len(values))
    rows = _resamples(len(values))
    means = reference[rows].mean(-1)
    # A resample may leave out the only seed whose reference is not 0.
    resampled = 100 * (values[rows].mean(-1) / np.where(means == 0, np.nan, means) - 1)
    return _interval(float(100 * (values.mean() / reference.mean() - 1)), resampled, len(values))


def best_of(columns: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]) -> str:
    """The policy among `names` with the lowest mean of `RANKED_BY` over the seeds.

    Args:
      columns: policy -> column -> [seeds].
      names: at least one.
    """
    return min(names, key=lambda name: float(columns[name][RANKED_BY].mean()))


def compare(columns: Mapping[str, Mapping[str, np.ndarray]], *, reference: str, best: str) -> dict[str, Comparison]:
    """Compares every policy of a cell with the reference and with the best heuristic.

    The best was chosen by the same seeds, which flatters it a little: differences to it lean to its side.

    Args:
      columns: policy -> column -> [seeds], the seeds in one order.
      reference: name of the policy that all are compared with.
      best: name of the best heuristic.
    """
    return {
        name: Comparison(
            means={column: mean_interval(values) for column, values in own.items()},
            against_reference={each: relative_difference(own[each], columns[reference][each]) for each in COMPARED},
            against_best={each: relative_difference(own[each], columns[best][each]) for each in COMPARED},
        )
        for name, own in columns.items()
    }


@functools.lru_cache(maxsize=4)
def _resamples(seeds: int) -> np.ndarray:
    """[RESAMPLES, seeds] rows of the resamples: the same for every comparison."""
    return np.random.default_rng(RESAMPLING_SEED).integers(seeds, size=(RESAMPLES, seeds))


def _interval(value: float, resampled: np.ndarray, seeds: int) -> Interval:
    """The expanded percentile interval.

    Plain percentiles of a bootstrap are too narrow with few seeds, as a normal interval with the variance over n is;
    moving them out to where Student's t has its own makes up for it (Hesterberg, The American Statistician 69, 2015).
    """
    if seeds < 2 or math.isnan(value):
        return Interval(value, math.nan, math.nan, seeds)
    reach = math.sqrt(seeds / (seeds - 1)) * stats.t.ppf((1 + LEVEL) / 2, seeds - 1)
    tail = float(stats.norm.cdf(-reach))
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high), seeds)
