"""Double DQN: what an update does, and that it learns what there is to learn."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uneven

from jaxroute.train.config import DqnConfig, FleetsConfig, NetworkConfig, RewardConfig, TrainConfig
from jaxroute.train.dqn import initial_state, make_learner
from jaxroute.train.dqn_learn import DqnLearner
from jaxroute.train.dqn_state import DqnMetrics, DqnState
from jaxroute.train.dqn_update import update

SMALL = DqnConfig(
    total_steps=80 * uneven.LANES * 64,
    rollout=64,
    passes=32,
    batch=128,
    replay=16_384,
    steps=8,
    learning_rate=2e-3,
    target_every=16,
    reward_unit=0.5,
    exploration_decay_s=20.0,
)


def config_of(own: DqnConfig = SMALL, **reward: object) -> TrainConfig:
    network = NetworkConfig(form="state", hidden=(32, 32), prior="none", holds=False)
    fleets = (FleetsConfig(instances=2, lanes=uneven.LANES),)
    chosen = RewardConfig(**{"horizon_s": 1.5, **reward})  # type: ignore[arg-type]
    return TrainConfig(fleets=fleets, network=network, reward=chosen, dqn=own)


def run(learner: DqnLearner, params: object, state: DqnState, updates: int) -> tuple[DqnState, list[DqnMetrics]]:
    step = jax.jit(partial(update, learner))
    metrics = []
    for _ in range(updates):
        state, own = step((params,), state, state.update)
        metrics.append(jax.device_get(own))
    return state, metrics


@pytest.fixture(scope="module")
def trained() -> tuple[DqnState, DqnState, list[DqnMetrics]]:
    """The first state, that after all updates, and the metrics of these."""
    env, params = uneven.problem()
    learner = make_learner(config_of(), (env,))
    start = initial_state(learner, (params,), jax.random.key(uneven.SEED))
    end, metrics = run(learner, params, start, learner.updates)
    return start, end, metrics


def test_it_learns_to_spare_the_slow_server_and_beats_random_routing(
    trained: tuple[DqnState, DqnState, list[DqnMetrics]],
) -> None:
    _, end, metrics = trained
    engines = end.groups[0].lanes.env.cluster.engines
    sent = np.asarray(engines.finished + engines.running + engines.queue.count).sum(0)
    assert sent[0] > 0.7 * sent.sum()
    # The first updates explore with 0.99: they are random routing.
    assert metrics[0].exploration > 0.5 and metrics[-1].exploration == 0
    before = np.mean([each.reward for each in metrics[:5]])
    after = np.mean([each.reward for each in metrics[-20:]])
    assert after > 0.75 * before
    assert all(np.isfinite(each).all() for each in metrics)


def test_the_target_network_is_a_copy_of_some_updates_ago() -> None:
    own = dataclasses.replace(SMALL, passes=3, target_every=6)
    env, params = uneven.problem()
    learner = make_learner(config_of(own), (env,))
    start = initial_state(learner, (params,), jax.random.key(0))
    states = [start]
    for _ in range(4):
        states.append(run(learner, params, states[-1], 1)[0])
    kernel = "params", "state_out", "kernel"

    def of(tree: object) -> np.ndarray:
        for name in kernel:
            tree = tree[name]  # type: ignore[index]
        return np.asarray(tree)

    targets, policies = [of(state.target) for state in states], [of(state.policy) for state in states]
    assert all((one != other).any() for one, other in itertools.pairwise(policies))
    np.testing.assert_array_equal(targets[1], policies[0])
    np.testing.assert_array_equal(targets[2], policies[2])
    np.testing.assert_array_equal(targets[3], policies[2])
    np.testing.assert_array_equal(targets[4], policies[4])


def test_a_memory_holds_whole_rollouts_of_every_lane() -> None:
    env, params = uneven.problem()
    learner = make_learner(config_of(dataclasses.replace(SMALL, replay=1_300)), (env,))
    assert learner.rows == 128
    state = jax.eval_shape(partial(initial_state, learner), (params,), jax.random.key(0))
    assert state.memories[0].action.shape == (uneven.LANES, 128)
    assert state.memories[0].observed.mask.shape == (uneven.LANES, 128, 3)


def test_guidance_that_decays_makes_the_start_myopic_as_the_paper_has_it() -> None:
    env, _ = uneven.problem()
    whole = float(np.exp(-0.02 / 1.5))
    weight = jnp.exp(-0.5 * jnp.asarray([0.0, 1.0, 5.0, 20.0]))

    def discounts(**reward: object) -> list[float]:
        learner = make_learner(config_of(**reward), (env,))
        return [float(learner.guided_discount(0, each)) for each in weight]

    guided = discounts(kind="paper", guidance="decaying")
    assert guided == pytest.approx([0, 0.3935 * whole, 0.9179 * whole, whole], abs=1e-4)
    assert discounts(kind="paper", guidance="constant") == pytest.approx([whole] * 4)
    assert discounts() == pytest.approx([whole] * 4)
