"""Length distributions on whole tokens, solved to have a given mean exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxroute.errors import InputError


@dataclasses.dataclass(frozen=True)
class LengthDistribution:
    """A distribution on 1..K tokens.

    Attributes:
      probability: [K] float64, of 1, 2, ..., K tokens; sums to 1.
    """

    probability: np.ndarray

    @property
    def mean(self) -> float:
        """Expected tokens."""
        return float(self.probability @ _tokens(len(self.probability)))

    def draw(self, uniforms: np.ndarray) -> np.ndarray:
        """[N] int64 lengths, one for each of [N] uniform numbers in [0, 1), by the inverse of the CDF."""
        below = np.searchsorted(np.cumsum(self.probability), uniforms, side="right")
        # The last cumulative sum can fall an ulp short of 1.
        return np.minimum(below, len(self.probability) - 1) + 1


def truncated_lognormal(mean: float, sigma: float, most: int) -> LengthDistribution:
    """A lognormal density taken at 1..most and renormalised, its location solved so that the mean is `mean`.

    Args:
      mean: expected tokens, truncation included.
      sigma: standard deviation of the logarithm, before truncation.
      most: longest length.

    Raises:
      InputError: no location gives this mean.
    """
    log_tokens = np.log(_tokens(most))

    def at(location: float) -> LengthDistribution:
        return LengthDistribution(_normalised(-((log_tokens - location) ** 2) / (2 * sigma**2) - log_tokens))

    return _with_mean(at, mean, low=-10.0, high=20.0)


def two_part_geometric(mean: float, long_share: float, long_from: int, most: int) -> LengthDistribution:
    """The distribution of largest entropy on 1..most with a given mean and a given share of long lengths.

    It is geometric below `long_from` and from there on, with one common ratio, which is solved for; the two parts
    weigh 1 - long_share and long_share. So both targets are met exactly and nothing else is assumed.

    Args:
      mean: expected tokens.
      long_share: probability of `long_from` tokens or more.
      long_from: shortest long length.
      most: longest length.

    Raises:
      InputError: no ratio gives this mean.
    """
    tokens = _tokens(most)
    short, long = tokens[: long_from - 1], tokens[long_from - 1 :]

    def at(slope: float) -> LengthDistribution:
        parts = ((1 - long_share) * _normalised(slope * short), long_share * _normalised(slope * long))
        return LengthDistribution(np.concatenate(parts))

    return _with_mean(at, mean, low=-10.0, high=10.0)


def _with_mean(at: Callable[[float], LengthDistribution], mean: float, low: float, high: float) -> LengthDistribution:
    """The member of a family whose mean grows with its parameter, by bisection down to float64 resolution."""
    if not at(low).mean <= mean <= at(high).mean:
        raise InputError(f"no such length distribution has mean {mean}: it must be in what the other settings allow")
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if at(middle).mean < mean else (low, middle)
    return at(high)


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _tokens(most: int) -> np.ndarray:
    return np.arange(1, most + 1, dtype=np.float64)
