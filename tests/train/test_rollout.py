"""Rollouts: what the environment would say to the same actions, twins beside them, and new episodes after old ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    LEAST_KV,
    NETWORK,
    ROUND_ROBIN,
    SCALES,
    TWO,
    first_weights,
    five_task_lanes,
    lanes_of,
    make_group,
    played,
    short_requests,
)

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.policies.protocol import Policy
from jaxroute.train.rollout import action_logits
from jaxroute.train.stagger import staggered
from jaxroute.train.state import Lanes
from jaxroute.workload.five_task import five_task
from jaxroute.workload.table import RequestTable

LENGTH = 64
KEY = jax.random.key(0)
"""Nothing here draws from it: the environment and the heuristics are deterministic."""


def lane_of(tree: Any, lane: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[lane], tree)


def three_lanes(*tables: RequestTable, max_steps: int | None = None) -> tuple[ClusterRouting, EnvParams]:
    """Lanes of those tables, of the shapes of all others here."""
    return make_group([TWO] * 3, [[table] * 2 for table in tables], size=40, max_steps=max_steps)


@partial(jax.jit, static_argnames=("env",))
def take_all(
    env: ClusterRouting, params: EnvParams, state: EnvState, actions: jax.Array
) -> tuple[EnvState, tuple[jax.Array, jax.Array]]:
    """The state after some actions, and the reward and whether it had terminated after each."""

    def step(state: EnvState, action: jax.Array) -> tuple[EnvState, tuple[jax.Array, jax.Array]]:
        _, after, reward, terminated, _ = env.step_env(KEY, state, action, params)
        return after, (reward, terminated)

    return jax.lax.scan(step, state, actions)


@partial(jax.jit, static_argnames=("env", "policy"))
def actions_of(env: ClusterRouting, params: EnvParams, state: EnvState, policy: Policy) -> jax.Array:
    """What a heuristic does in `LENGTH` intervals from a state on."""

    def step(carry: tuple[EnvState, Any], _: None) -> tuple[tuple[EnvState, Any], jax.Array]:
        state, memory = carry
        action, memory = policy.act(memory, env.view(state, params), KEY)
        return (env.step_env(KEY, state, action, params)[1], memory), action

    return jax.lax.scan(step, (state, policy.initial_state(env.instances)), None, length=LENGTH)[1]


@pytest.fixture(scope="module")
def busy() -> tuple[ClusterRouting, EnvParams, Lanes]:
    """Three lanes amid their episodes, each at another point."""
    env, params = five_task_lanes(TWO, 3)
    lanes = lanes_of(env, params)
    return env, params, lanes.replace(env=staggered(env, ROUND_ROBIN, params, lanes.env, jax.random.key(3)))


def test_lanes_start_at_evenly_spread_points_of_their_arrivals(busy: tuple[ClusterRouting, EnvParams, Lanes]) -> None:
    _, params, lanes = busy
    picked = np.asarray(lanes.env.index)
    last = np.asarray(params.workloads.visible_step)[np.arange(3), picked, -1]
    assert np.asarray(lanes.env.time).tolist() == [lane * end // 3 for lane, end in enumerate(last)]
    assert np.asarray(lanes.env.cluster.now).tolist() == np.asarray(lanes.env.time).tolist()
    assert np.diff(lanes.env.cluster.dispatched).min() > 5


def test_rewards_and_states_are_those_of_the_environment(busy: tuple[ClusterRouting, EnvParams, Lanes]) -> None:
    env, params, lanes = busy
    after, experience = played(env, params, lanes, length=LENGTH)
    assert experience.action.shape == (3, LENGTH)
    assert len(np.unique(experience.action)) == 3
    for lane in range(3):
        end, (rewards, _) = take_all(env, lane_of(params, lane), lane_of(lanes.env, lane), experience.action[lane])
        np.testing.assert_allclose(experience.path.reward[lane], rewards, rtol=1e-5, atol=1e-6)
        reached = lane_of(after.env, lane)
        assert int(reached.time) == int(end.time) == int(lanes.env.time[lane]) + LENGTH
        np.testing.assert_array_equal(reached.cluster.engines.in_flight_tokens, end.cluster.engines.in_flight_tokens)
        assert int(reached.cluster.dispatched) == int(end.cluster.dispatched)
    assert bool(experience.alive.all())
    assert not bool(after.done.any())


def test_probabilities_are_of_the_actions_and_masked_ones_are_never_taken(
    busy: tuple[ClusterRouting, EnvParams, Lanes],
) -> None:
    env, params, lanes = busy
    _, experience = played(env, params, lanes, length=LENGTH)
    allowed = np.take_along_axis(
        np.asarray(experience.observed.mask), np.asarray(experience.action)[..., None], axis=-1
    )
    assert allowed.all()
    logits = action_logits(NETWORK, first_weights(0), experience.observed, SCALES)
    own = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), np.asarray(experience.action)[..., None], axis=-1)
    np.testing.assert_allclose(experience.log_prob, own[..., 0], rtol=1e-4, atol=1e-6)
    choices = np.asarray(NETWORK.allowed(experience.observed)).sum(-1)
    assert set(choices.reshape(-1).tolist()) >= {1, 3}
    assert (np.asarray(experience.log_prob)[choices == 1] == 0).all()
    assert (np.asarray(experience.log_prob)[choices == 3] < -0.1).all()


def test_the_twin_is_a_run_of_the_heuristic_from_the_state_of_the_lane(
    busy: tuple[ClusterRouting, EnvParams, Lanes],
) -> None:
    env, params, lanes = busy
    _, experience = played(env, params, lanes, length=LENGTH)
    assert experience.twin is not None
    for lane in range(3):
        own, start = lane_of(params, lane), lane_of(lanes.env, lane)
        _, (rewards, _) = take_all(env, own, start, actions_of(env, own, start, LEAST_KV))
        np.testing.assert_allclose(experience.twin.reward[lane], rewards, rtol=1e-5, atol=1e-6)
    # They start together, and the critic sees the same of both.
    for own, other in zip(experience.path.judged, experience.twin.judged, strict=True):
        np.testing.assert_array_equal(own[:, 0], other[:, 0])
    assert (np.asarray(experience.path.reward) != np.asarray(experience.twin.reward)).any()


def test_without_a_twin_the_policys_path_is_the_same(busy: tuple[ClusterRouting, EnvParams, Lanes]) -> None:
    env, params, lanes = busy
    _, alone = played(env, params, lanes, length=LENGTH, twin=None)
    _, beside = played(env, params, lanes, length=LENGTH)
    assert alone.twin is None
    np.testing.assert_array_equal(alone.action, beside.action)
    np.testing.assert_allclose(alone.path.reward, beside.path.reward, rtol=1e-6)


def test_the_teachers_advice_is_for_the_states_of_the_policy(busy: tuple[ClusterRouting, EnvParams, Lanes]) -> None:
    env, params, lanes = busy
    _, experience = played(env, params, lanes, length=LENGTH)
    state, own = lane_of(lanes.env, 1), lane_of(params, 1)
    for step in (0, 20, 40, 63):
        reached, _ = take_all(env, own, state, experience.action[1, :step])
        advice, _ = LEAST_KV.act((), env.view(reached, own), KEY)
        assert int(experience.teacher[1, step]) == int(advice)
    assert len(np.unique(experience.teacher)) > 1


def test_a_lane_that_ended_counts_for_nothing_until_the_next_rollout_begins_another_episode() -> None:
    env, params = three_lanes(short_requests(), five_task(40, 10.0, 0), five_task(40, 10.0, 1))
    lanes = lanes_of(env, params)
    after, experience = played(env, params, lanes, length=LENGTH, seed=1)
    alive, reward = np.asarray(experience.alive), np.asarray(experience.path.reward)
    lived = int(alive[0].sum())
    assert 15 < lived < LENGTH
    assert alive[0].tolist() == [True] * lived + [False] * (LENGTH - lived)
    assert np.flatnonzero(experience.path.terminated[0])[0] == lived - 1
    assert bool(experience.path.ended[0, lived - 1 :].all())
    assert (reward[0, lived:] == 0).all()
    assert after.done.tolist() == [True, False, False]
    # The second begins again where the first one did, the other lanes go on.
    again, second = played(env, params, after, length=LENGTH, seed=5)
    assert np.asarray(second.alive)[:, 0].tolist() == [True] * 3
    assert again.env.time[1:].tolist() == [2 * LENGTH] * 2
    for part in (experience, second):
        _, (rewards, terminated) = take_all(env, lane_of(params, 0), lane_of(lanes.env, 0), part.action[0])
        end = int(np.flatnonzero(terminated)[0])
        assert int(part.alive[0].sum()) == end + 1
        assert float(part.path.reward[0].sum()) == pytest.approx(float(rewards[: end + 1].sum()), rel=1e-5)
        # Six requests of five tokens each.
        assert -3 < part.path.reward[0].sum() < -0.5


def test_an_episode_that_is_cut_off_ends_without_having_terminated() -> None:
    env, params = three_lanes(*(five_task(40, 10.0, seed) for seed in range(3)), max_steps=40)
    after, experience = played(env, params, lanes_of(env, params), length=LENGTH)
    assert np.asarray(experience.alive).tolist() == [[True] * 40 + [False] * 24] * 3
    assert not bool(experience.path.terminated.any())
    assert np.argmax(experience.path.ended, axis=1).tolist() == [39] * 3
    assert (np.asarray(experience.path.reward)[:, 40:] == 0).all()
    assert (np.asarray(experience.path.reward)[:, 25:40] < 0).all()
    assert after.done.tolist() == [True] * 3


def test_a_twin_that_is_done_waits_without_reward() -> None:
    env, params = three_lanes(*[short_requests()] * 3)
    lanes = lanes_of(env, params)
    _, experience = played(env, params, lanes, length=LENGTH)
    assert experience.twin is not None
    own, start = lane_of(params, 0), lane_of(lanes.env, 0)
    _, (rewards, terminated) = take_all(env, own, start, actions_of(env, own, start, LEAST_KV))
    end = int(np.flatnonzero(terminated)[0])
    assert 15 < end < LENGTH - 5
    np.testing.assert_allclose(experience.twin.reward[0, : end + 1], rewards[: end + 1], rtol=1e-5, atol=1e-6)
    assert (np.asarray(experience.twin.reward)[0, end + 1 :] == 0).all()
    assert bool(experience.twin.terminated[0, end:].all())


def test_the_policy_sees_nothing_of_the_hidden_truth_and_the_critic_does() -> None:
    """Output lengths that nobody has seen yet; no request finishes within the rollout."""
    tables = [five_task(40, 10.0, seed) for seed in range(3)]
    seen = []
    for more in (80, 400):
        env, params = three_lanes(*(each.replace(output_tokens=each.output_tokens + more) for each in tables))
        # What is predicted comes from the truth.
        told = jnp.full_like(params.workloads.predicted_tokens, 100)
        blind = params.workloads.replace(predicted_tokens=told, predicted_upper=told, predicted_bucket=told // 50)
        params = params.replace(workloads=blind)
        seen.append(played(env, params, lanes_of(env, params), length=LENGTH)[1])
    one, other = seen
    for first, second in zip(one.observed, other.observed, strict=True):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(one.action, other.action)
    assert np.abs(np.diff(one.observed.instances, axis=1)).sum() > 1
    assert (np.asarray(one.path.judged.whole) != np.asarray(other.path.judged.whole)).any()


def test_random_numbers_go_with_the_lane_and_not_with_its_place(
    busy: tuple[ClusterRouting, EnvParams, Lanes],
) -> None:
    env, params, lanes = busy
    order = np.asarray([2, 0, 1])
    _, straight = played(env, params, lanes, length=LENGTH)
    _, permuted = played(
        env, *(jax.tree.map(lambda leaf: leaf[order], each) for each in (params, lanes)), length=LENGTH
    )
    np.testing.assert_array_equal(np.asarray(straight.action)[order], permuted.action)
    assert (np.asarray(straight.action[0]) != np.asarray(straight.action[1])).any()
