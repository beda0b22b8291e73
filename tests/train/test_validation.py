from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from jaxroute.devices import lane_mesh
from jaxroute.errors import InputError
from jaxroute.evaluate import FIRST_SEED
from jaxroute.policies.network import FeatureScales
from jaxroute.train.config import FleetsConfig, TrainConfig
from jaxroute.train.episode import Outcome
from jaxroute.train.load_config import load_config
from jaxroute.train.ppo import initial_state, make_learner
from jaxroute.train.scenarios import make_groups
from jaxroute.train.stage import devices_for
from jaxroute.train.validation import UNFINISHED, Figures, Validator, figures_of, greedy_outcomes, validation_groups

SMOKE = load_config("smoke")
KEPT = ("e2e_mean", "e2e_p99", "ttft_p99", "makespan")


def seeds_of(config: TrainConfig, devices: int = 1) -> list[int]:
    return [seed for group in validation_groups(config, devices) for lane in group.scenarios for seed in lane.seeds]


def outcome(*, complete: tuple[float, ...] = (1, 1), **given: tuple[float, ...]) -> Outcome:
    values = {name: np.ones(len(complete), np.float32) for name in Outcome._fields}
    return Outcome(**values | {name: np.float32(value) for name, value in {**given, "complete": complete}.items()})


def test_validation_has_the_highest_seeds_below_those_of_evaluation() -> None:
    assert seeds_of(SMOKE) == list(range(FIRST_SEED - 4, FIRST_SEED))


def test_no_table_is_trained_on() -> None:
    # Seeds of training wrap around, so that these two runs have the last block below the first of evaluation.
    config = dataclasses.replace(SMOKE, seed=FIRST_SEED // 8 - 2, seeds=2)
    trained = {
        seed for run in (0, 1) for group in make_groups(config, run) for lane in group.scenarios for seed in lane.seeds
    }
    assert trained == set(range(FIRST_SEED - 16, FIRST_SEED))
    assert seeds_of(config) == list(range(FIRST_SEED - 20, FIRST_SEED - 16))


def test_a_run_that_trains_on_every_seed_is_refused() -> None:
    workloads = dataclasses.replace(SMOKE.workloads, tables=FIRST_SEED // 4)
    with pytest.raises(InputError, match="leave no seeds for validation; lower seeds"):
        validation_groups(dataclasses.replace(SMOKE, workloads=workloads), 1)


@pytest.mark.parametrize(("lanes", "devices", "expected"), [(4, 2, 4), (40, 1, 16), (40, 5, 15), (3, 3, 3)])
def test_lanes_are_few_and_divided_by_the_devices(lanes: int, devices: int, expected: int) -> None:
    config = dataclasses.replace(SMOKE, fleets=(dataclasses.replace(SMOKE.fleets[0], lanes=lanes),))
    assert len(validation_groups(config, devices)[0].scenarios) == expected


def test_the_mesh_has_the_most_devices_that_divide_lanes_and_members() -> None:
    assert devices_for(SMOKE) == 2
    three = (*SMOKE.fleets, FleetsConfig(lanes=3))
    assert devices_for(dataclasses.replace(SMOKE, fleets=three)) == 1


def test_figures_are_means_of_ratios_over_the_lanes_where_both_ended() -> None:
    own = outcome(complete=(1, 1, 0, 1), e2e_mean=(9, 11, 1, 5), e2e_p99=(20, 10, 1, 1), makespan=(50, 50, 1, 1))
    other = outcome(complete=(1, 1, 1, 0), e2e_mean=(10, 10, 10, 1), e2e_p99=(10, 10, 1, 1), makespan=(100, 25, 1, 1))
    figures = figures_of(own, other)
    assert figures.e2e_mean == pytest.approx(0.0)
    assert figures.e2e_p99 == pytest.approx(0.5)
    assert figures.ttft_p99 == pytest.approx(0.0)
    assert figures.makespan == pytest.approx(0.25)
    assert figures.incomplete == 0.25


def test_without_an_episode_that_ended_the_score_is_the_worst() -> None:
    figures = figures_of(outcome(complete=(0, 0)), outcome())
    assert math.isnan(figures.e2e_mean)
    assert (figures.incomplete, figures.score) == (1.0, UNFINISHED)


def test_a_worse_tail_counts_against_a_better_mean_and_a_better_one_does_not_count() -> None:
    assert Figures(-0.10, 0.04, 0, 0, 0).score == pytest.approx(-0.06)
    assert Figures(-0.10, -0.5, 0, 0, 0).score == pytest.approx(-0.10)
    assert Figures(-0.10, 0, 0, 0, 0.5).score > Figures(5, 5, 0, 0, 0).score


def test_validation_is_the_same_on_any_number_of_devices_and_compiled_once() -> None:
    groups = make_groups(SMOKE)
    learner = make_learner(SMOKE, tuple(group.env for group in groups))
    state = initial_state(learner, tuple(group.params for group in groups), jax.random.key(0))
    policy, scales = jax.device_get((state.policy, state.scales.fixed()))
    two = Validator(SMOKE, learner.network, lane_mesh(2))
    figures = two(policy, scales)
    size = greedy_outcomes._cache_size()
    opposite = jax.tree.map(lambda leaf: -leaf, policy)
    other = two(opposite, FeatureScales(*(leaf + 1 for leaf in jax.tree.leaves(scales))))
    assert greedy_outcomes._cache_size() == size
    assert vars(Validator(SMOKE, learner.network, lane_mesh(1))(policy, scales)) == vars(figures)
    # The fewest tokens in flight, and its opposite, which sends all to the fullest.
    assert figures.incomplete == other.incomplete == 0
    assert all(getattr(figures, name) < getattr(other, name) for name in KEPT[:3])
