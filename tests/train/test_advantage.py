"""Advantages, returns, and how much of a twin's advantage is noise that the policy shares."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.devices import lane_mesh
from jaxroute.train.advantage import control_weight, discounted_returns, generalised_advantage

DISCOUNT, DECAY = 0.9, 0.8


def sums(terms: list[float], ended: list[bool], factor: float) -> list[float]:
    """Of every step, the terms from it to the first end, each a factor smaller than the one before."""
    totals = []
    for start in range(len(terms)):
        total, weight = 0.0, 1.0
        for term, end in zip(terms[start:], ended[start:], strict=True):
            total += weight * term
            weight *= factor
            if end:
                break
        totals.append(total)
    return totals


def by_hand(reward: list[float], value: list[float], terminated: list[bool], ended: list[bool]) -> list[float]:
    errors = [
        now + (0.0 if last else DISCOUNT * value[step + 1]) - value[step]
        for step, (now, last) in enumerate(zip(reward, terminated, strict=True))
    ]
    return sums(errors, ended, DISCOUNT * DECAY)


NOWHERE = [False] * 6


@pytest.mark.parametrize(
    ("terminated", "ended"),
    [
        (NOWHERE, NOWHERE),
        ([False] * 5 + [True], [False] * 5 + [True]),
        (NOWHERE, [False] * 5 + [True]),
        ([False, False, True, False, False, False], [False, False, True, False, False, True]),
        (NOWHERE, [False, True, False, True, False, False]),
        ([False] * 3 + [True] * 3, [False] * 3 + [True] * 3),
    ],
    ids=["goes on", "terminated", "cut off", "terminated amid and cut off", "cut off twice amid", "dead from amid on"],
)
def test_advantages_are_the_discounted_errors_up_to_the_end(terminated: list[bool], ended: list[bool]) -> None:
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=6), rng.normal(size=7)
    found = generalised_advantage(
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(value, jnp.float32),
        jnp.asarray(terminated),
        jnp.asarray(ended),
        discount=DISCOUNT,
        decay=DECAY,
    )
    np.testing.assert_allclose(found, by_hand(reward.tolist(), value.tolist(), terminated, ended), rtol=1e-5)


def test_the_value_behind_the_end_counts_where_an_episode_is_cut_off_and_not_where_it_terminates() -> None:
    def last(terminated: bool) -> float:
        flag = jnp.asarray([terminated])
        value = jnp.asarray([2.0, 5.0])
        ended = jnp.asarray([True])
        return float(generalised_advantage(jnp.ones(1), value, flag, ended, discount=0.5, decay=1.0)[0])

    assert last(terminated=True) == 1 - 2
    assert last(terminated=False) == 1 + 0.5 * 5 - 2


def test_without_decay_advantages_are_returns_less_values() -> None:
    reward, value = jnp.asarray([1.0, 2.0, 4.0]), jnp.asarray([3.0, 1.0, 5.0, 7.0])
    no = jnp.zeros(3, bool)
    found = generalised_advantage(reward, value, no, no, discount=0.5, decay=1.0)
    np.testing.assert_allclose(found, [1 + 1 + 1 + 7 / 8 - 3, 2 + 2 + 7 / 4 - 1, 4 + 7 / 2 - 5], rtol=1e-6)


def test_returns_stop_at_the_end() -> None:
    ended = jnp.asarray([False, True, False])
    assert discounted_returns(jnp.asarray([1.0, 2.0, 4.0]), ended, 0.5).tolist() == [2.0, 2.0, 4.0]
    assert discounted_returns(jnp.asarray([1.0, 2.0, 4.0]), ~ended, 0.5).tolist() == [1.0, 4.0, 4.0]


def correlated(slope: float, count: int = 4000) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    noise = rng.normal(size=count)
    own = slope * noise + 0.5 * rng.normal(size=count)
    return jnp.asarray(own, jnp.float32), jnp.asarray(noise, jnp.float32)


@pytest.mark.parametrize(("slope", "weight"), [(0.0, 0.0), (0.3, 0.3), (0.7, 0.7), (1.0, 1.0), (1.6, 1.0), (-0.5, 0.0)])
def test_the_slope_of_shared_noise_is_found_and_lies_from_0_to_1(slope: float, weight: float) -> None:
    own, twin = correlated(slope)
    found = float(control_weight(own, twin, jnp.ones(own.shape), None))
    assert 0 <= found <= 1
    assert found == pytest.approx(weight, abs=0.03)


def test_subtracting_the_twin_takes_the_shared_noise_out() -> None:
    own, twin = correlated(0.7)
    weight = control_weight(own, twin, jnp.ones(own.shape), None)
    assert float(jnp.std(own - weight * twin)) == pytest.approx(0.5, rel=0.03)
    assert float(jnp.std(own)) > 0.8


def test_steps_without_weight_have_no_share_in_the_slope() -> None:
    own, twin = correlated(0.6, 1000)
    counts = jnp.asarray(np.arange(1000) % 2, jnp.float32)
    spoiled = jnp.where(counts > 0, own, 1e3)
    assert float(control_weight(spoiled, twin, counts, None)) == float(control_weight(own, twin, counts, None))
    assert float(control_weight(own, twin, jnp.zeros(1000), None)) == 0
    assert float(control_weight(own, jnp.zeros(1000), counts, None)) == 0


def test_the_slope_over_devices_is_that_of_all_steps() -> None:
    own, twin = correlated(0.6, 1000)
    lanes, whole = jax.sharding.PartitionSpec("lanes"), jax.sharding.PartitionSpec()
    program = jax.shard_map(
        partial(control_weight, axis="lanes"),
        mesh=lane_mesh(2),
        in_specs=(lanes, lanes, lanes),
        out_specs=whole,
        check_vma=False,
    )
    ones = jnp.ones(1000)
    assert float(program(own, twin, ones)) == pytest.approx(float(control_weight(own, twin, ones, None)), rel=1e-5)
