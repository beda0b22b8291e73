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


def problem() -> tuple[tiny.ClusterRouting, tiny.EnvParams, Explorers]:
    env, params = tiny.make_group([tiny.TWO] * LANES, [[tiny.short_requests()]] * LANES)
    return env, params, Explorers(lanes=tiny.lanes_of(env, params), episode=jnp.zeros(LANES, jnp.int32))


def test_episodes_of_all_lanes_are_counted_together_and_only_the_first_ones_explore() -> None:
    env, params, explorers = problem()
    config = DqnConfig(rollout=64, exploration_episodes=3, exploration=0.8, exploration_decay=1.0)
    seen = []
    for call in range(3):
        key = jax.random.key(call)
        explorers, transitions, facts = played(env, config, params, tiny.first_weights(0), explorers, key)
        # An episode takes less than a rollout, and the next one begins with the next rollout.
        assert transitions.terminated.any(axis=1).all()
        assert not transitions.alive[:, -1].any()
        seen.append(facts.exploration.tolist())
    # Episodes 0 and 1, 2 and 3, 4 and 5.
    assert np.asarray(seen) == pytest.approx(np.asarray([[0.8, 0.8], [0.8, 0], [0, 0]]))
    assert explorers.episode.tolist() == [2, 2]


def test_actions_are_allowed_ones_at_random_or_the_best_by_the_network() -> None:
    env, params, explorers = problem()
    weights = jax.tree.map(lambda leaf: 20 * leaf, tiny.first_weights(1))
    for rate in (0.0, 1.0):
        config = DqnConfig(rollout=64, exploration=rate, exploration_decay=1.0)
        _, transitions, _ = played(env, config, params, weights, explorers, jax.random.key(3))
        allowed = np.asarray(tiny.NETWORK.allowed(transitions.observed))
        action = np.asarray(transitions.action)
        assert np.take_along_axis(allowed, action[..., None], axis=-1).all()
        values = np.asarray(tiny.NETWORK.apply(weights, transitions.observed, tiny.SCALES))
        best = values.argmax(-1)
        decides = allowed.sum(-1) > 1
        assert decides.sum() >= 2 * LANES
        assert (action == best).all() if rate == 0 else (action != best)[decides].any()


def test_the_reward_is_that_of_the_environment_and_the_penalty_is_kept_apart() -> None:
    """`penalty_weight` of the parameters, which is 1 here, has no share in the reward."""
    env, params, explorers = problem()
    paper = dataclasses.replace(env, reward="paper")
    config = DqnConfig(rollout=64, exploration=1.0, exploration_decay=1.0)
    ones = params.replace(penalty_weight=jnp.ones(LANES))
    zeros = params.replace(penalty_weight=jnp.zeros(LANES))
    weights, key = tiny.first_weights(2), jax.random.key(5)
    _, transitions, _ = played(paper, config, ones, weights, explorers, key)
    _, other, _ = played(paper, config, zeros, weights, explorers, key)
    assert transitions.reward.tolist() == other.reward.tolist()
    assert float(transitions.penalty.max()) > 0 == float(transitions.penalty.min())
    sums = np.where(transitions.alive, transitions.reward, 0).sum(1)
    # Six completions of 60 each, less the penalty for the time that they took.
    assert (sums < 360).all() and (sums > 0).all()
