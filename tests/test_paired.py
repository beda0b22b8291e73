"""Paired bootstrap intervals on numbers whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxroute import paired
from jaxroute.paired import best_of, compare, mean_interval, relative_difference


def test_difference_is_that_of_the_means_in_percent_of_the_reference() -> None:
    difference = relative_difference(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 4.0]))
    assert difference.value == pytest.approx(-25.0)
    assert difference.low <= -25.0 <= difference.high


def test_a_constant_ratio_has_an_interval_of_no_width_however_much_the_seeds_differ() -> None:
    reference = np.array([1.0, 10.0, 100.0, 3.0, 30.0, 7.0])
    difference = relative_difference(0.9 * reference, reference)
    assert (difference.low, difference.value, difference.high) == pytest.approx((-10, -10, -10))
    assert difference.significant


def test_a_policy_does_not_differ_from_itself() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    difference = relative_difference(values, values)
    assert (difference.low, difference.value, difference.high) == (0, 0, 0)
    assert not difference.significant


def test_pairing_takes_out_what_all_policies_share() -> None:
    rng = np.random.default_rng(0)
    seeds = rng.gamma(4.0, 1.0, 20)
    values = seeds * 0.98 + rng.normal(0, 0.01, 20)
    joint = relative_difference(values, seeds)
    torn = relative_difference(rng.permutation(values), seeds)
    assert joint.significant
    assert not torn.significant
    assert joint.high - joint.low < 0.1 * (torn.high - torn.low)


def test_intervals_are_the_same_every_time() -> None:
    values, reference = np.random.default_rng(3).random((2, 10)) + 1
    first = relative_difference(values, reference)
    paired._resamples.cache_clear()
    assert relative_difference(values, reference) == first


@pytest.mark.parametrize(("seeds", "least"), [(6, 0.90), (20, 0.93)])
def test_intervals_cover_the_truth_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch, seeds: int, least: float
) -> None:
    monkeypatch.setattr(paired, "RESAMPLES", 1000)
    paired._resamples.cache_clear()
    rng = np.random.default_rng(1)
    runs = 1000
    covered = 0
    for _ in range(runs):
        hardness = 10 + rng.gamma(4.0, 1.0, seeds)
        interval = relative_difference(0.9 * hardness + rng.normal(0, 0.3, seeds), hardness)
        covered += interval.low <= -10 <= interval.high
    paired._resamples.cache_clear()
    assert least < covered / runs < 0.98


def test_mean_interval_comes_near_that_of_students_t() -> None:
    values = np.random.default_rng(5).normal(10, 2, 20)
    interval = mean_interval(values)
    half = 2.093 * values.std(ddof=1) / math.sqrt(20)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_one_seed_has_no_interval_and_few_are_never_significant() -> None:
    one = relative_difference(np.array([1.0]), np.array([2.0]))
    assert one.value == -50
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert not one.significant
    five = relative_difference(np.full(5, 1.0), np.full(5, 2.0))
    assert five.high == -50
    assert not five.significant


def test_no_difference_is_given_to_a_reference_of_zero() -> None:
    assert math.isnan(relative_difference(np.ones(3), np.zeros(3)).value)


def test_every_policy_is_compared_with_the_reference_and_the_best() -> None:
    columns = {
        name: {each: scale * np.arange(1.0, 7.0) for each in paired.COMPARED} | {"preemptions": np.arange(6.0)}
        for name, scale in (("round-robin", 1.0), ("good", 0.5), ("learned", 0.25))
    }
    best = best_of(columns, ["round-robin", "good"])
    assert best == "good"
    learned = compare(columns, reference="round-robin", best=best)["learned"]
    assert learned.against_reference["ttft_p99_s"].value == pytest.approx(-75)
    assert learned.against_best["makespan_s"].value == pytest.approx(-50)
    assert learned.means["preemptions"].value == 2.5
