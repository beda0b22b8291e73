from __future__ import annotations

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.workload.arrivals import arrival_times, retime
from jaxroute.workload.table import RequestTable


def gaps_of(process: str, cv: float = 1.0) -> np.ndarray:
    return np.diff(arrival_times(process, 100_001, 8.0, np.random.default_rng(0), cv=cv))


@pytest.mark.parametrize(
    ("process", "cv", "expected"), [("poisson", 1.0, 1.0), ("gamma", 2.5, 2.5), ("gamma", 0.4, 0.4)]
)
def test_gaps_have_the_rate_and_the_variation_asked_for(process: str, cv: float, expected: float) -> None:
    gaps = gaps_of(process, cv)
    assert 1 / gaps.mean() == pytest.approx(8.0, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(expected, rel=0.03)


def test_constant_gaps_are_constant() -> None:
    np.testing.assert_allclose(gaps_of("constant"), 0.125)


def test_retiming_reaches_the_rate_and_keeps_the_ratios_of_the_gaps() -> None:
    times = arrival_times("gamma", 1000, 3.0, np.random.default_rng(1), cv=3.0)
    table = RequestTable.create(times, np.ones(1000), np.ones(1000), name="bursty")
    fast = retime(table, 12.0)
    assert fast.mean_rate == pytest.approx(12.0)
    np.testing.assert_allclose(np.diff(fast.arrival_s) * 12.0 / table.mean_rate, np.diff(table.arrival_s), atol=1e-9)


def test_requests_that_come_all_at_once_cannot_be_retimed() -> None:
    table = RequestTable.create(np.zeros(3), np.ones(3), np.ones(3), name="burst")
    with pytest.raises(InputError, match=r"burst: all requests arrive at the same time.*omit --rate"):
        retime(table, 1.0)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_finite_and_positive(rate: float) -> None:
    with pytest.raises(InputError, match="rate is"):
        arrival_times("poisson", 10, rate, np.random.default_rng(0))


def test_unknown_process_and_bad_variation_are_named() -> None:
    with pytest.raises(InputError, match="unknown arrival process 'weibull'"):
        arrival_times("weibull", 10, 1.0, np.random.default_rng(0))
    with pytest.raises(InputError, match="cv is -1"):
        arrival_times("gamma", 10, 1.0, np.random.default_rng(0), cv=-1.0)
