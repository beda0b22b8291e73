"""Exploration as the paper's, and what is remembered of an interval."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxroute.train.config import DqnConfig
from jaxroute.train.dqn_play import Explorers, Played, Transition, exploration, explore

PAPER = DqnConfig()
LANES = 2


def chance(episode: int, seconds: float, config: DqnConfig = PAPER) -> float:
    return float(exploration(config, jnp.int32(episode), jnp.float32(seconds)))


def test_exploration_starts_again_in_every_episode_and_halves_within_it() -> None:
    for episode in (0, 1, 29):
        assert [chance(episode, seconds) for seconds in (0, 10, 20, 50)] == pytest.approx(
            [0.99, 0.495, 0.2475, 0.99 / 32], rel=1e-5
        )


def test_from_the_thirtieth_episode_on_it_is_the_floor() -> None:
    assert [chance(episode, 0) for episode in (30, 31, 1000)] == [0, 0, 0]
    floor = DqnConfig(final_exploration=0.05)
    assert chance(30, 0, floor) == pytest.approx(0.05)
    assert chance(0, 100, floor) == pytest.approx(0.05)
    assert chance(0, 0, floor) == pytest.approx(0.99)


@partial(jax.jit, static_argnames=("env", "config"))
def played(
    env: tiny.ClusterRouting,
    config: DqnConfig,
    params: tiny.EnvParams,
    weights: tiny.Params,
    explorers: Explorers,
    key: jax.Array,
) -> tuple[Explorers, Transition, Played]:
    return explore(env, params, tiny.NETWORK, weights, tiny.SCALES, explorers, key, config=config, lanes=LANES)


WEIGHTS = jax.tree.map(lambda leaf: 20 * leaf, tiny.first_weights(1))
"""Decided enough that the best action is seldom the random one."""

ALWAYS = DqnConfig(rollout=64, exploration=1.0, exploration_decay=1.0, exploration_episodes=3)
"""The first three episodes are routed at random, the others not at all. An episode takes less than a rollout."""


@pytest.fixture(scope="module")
def problem() -> tuple[tiny.ClusterRouting, tiny.EnvParams, Explorers]:
    """Rewarded as in the paper, with a penalty of weight 1."""
    env, params = tiny.make_group([tiny.TWO] * LANES, [[tiny.short_requests()]] * LANES)
    explorers = Explorers(lanes=tiny.lanes_of(env, params), episode=jnp.zeros(LANES, jnp.int32))
    return dataclasses.replace(env, reward="paper"), params.replace(penalty_weight=jnp.ones(LANES)), explorers


@pytest.fixture(scope="module")
def calls(
    problem: tuple[tiny.ClusterRouting, tiny.EnvParams, Explorers],
) -> list[tuple[Explorers, Transition, Played]]:
    """Three rollouts one after the other: episodes 0 and 1, 2 and 3, 4 and 5."""
    env, params, explorers = problem
    found = []
    for call in range(3):
        found.append(played(env, ALWAYS, params, WEIGHTS, explorers, jax.random.key(call)))
        explorers = found[-1][0]
    return found


def test_episodes_of_all_lanes_are_counted_together_and_only_the_first_ones_explore(
    calls: list[tuple[Explorers, Transition, Played]],
) -> None:
    assert [facts.exploration.tolist() for _, _, facts in calls] == [[1, 1], [1, 0], [0, 0]]
    assert [explorers.episode.tolist() for explorers, _, _ in calls] == [[0, 0], [1, 1], [2, 2]]
    for explorers, transitions, _ in calls:
        # Each comes to its end, and the next one begins with the next rollout.
        assert transitions.terminated.any(axis=1).all() and explorers.lanes.done.all()
        assert transitions.alive[:, 0].all() and not transitions.alive[:, -1].any()
        last = transitions.alive.sum(axis=1) - 1
        assert transitions.ended[jnp.arange(LANES), last].all()


def test_actions_are_allowed_ones_at_random_or_the_best_by_the_network(
    calls: list[tuple[Explorers, Transition, Played]],
) -> None:
    differs = []
    for _, transitions, facts in calls:
        allowed = np.asarray(tiny.NETWORK.allowed(transitions.observed))
        action = np.asarray(transitions.action)
        assert np.take_along_axis(allowed, action[..., None], axis=-1).all()
        best = np.asarray(tiny.NETWORK.apply(WEIGHTS, transitions.observed, tiny.SCALES)).argmax(-1)
        decides = (allowed.sum(-1) > 1) & np.asarray(transitions.alive)
        assert decides.sum(1).min() >= 2
        for lane, rate in enumerate(facts.exploration.tolist()):
            if rate == 0:
                assert (action == best)[lane].all()
            else:
                differs.append((action != best)[lane][decides[lane]].mean())
    assert np.mean(differs) > 0.2


def test_the_reward_is_kept_apart_from_the_penalty(
    problem: tuple[tiny.ClusterRouting, tiny.EnvParams, Explorers],
    calls: list[tuple[Explorers, Transition, Played]],
) -> None:
    env, params, explorers = problem
    transitions = calls[0][1]
    without = params.replace(penalty_weight=jnp.zeros(LANES))
    _, other, _ = played(env, ALWAYS, without, WEIGHTS, explorers, jax.random.key(0))
    assert transitions.reward.tolist() == other.reward.tolist()
    assert float(transitions.penalty.max()) > 0 == float(transitions.penalty.min())
    # Six completions of 60 each, less what they took.
    sums = np.where(transitions.alive, transitions.reward, 0).sum(1)
    assert (sums < 360).all()
