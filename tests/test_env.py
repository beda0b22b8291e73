from __future__ import annotations

import dataclasses

import chex
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.wrappers import LegacyStepAPIWrapper, LogWrapper

import jaxroute
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.errors import InputError
from jaxroute.make_env import register
from jaxroute.observation import GLOBAL_FEATURES, INSTANCE_FEATURES
from jaxroute.policies import heuristic
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict

V100 = load_profile("v100-32gb-llama2-7b")
FLEET = Fleet((V100.with_kv_tokens(3000),) * 3, ("chunked",) * 3)
TABLES = [five_task(60, 20.0, seed) for seed in range(3)]


@pytest.fixture(scope="module")
def made() -> tuple[ClusterRouting, EnvParams]:
    return jaxroute.make("ClusterRouting-v0", fleet=FLEET, tables=TABLES)


def run_policy(env: ClusterRouting, params: EnvParams, name: str, intervals: int, seed: int = 0):
    """Rewards, states and whatever else of one episode under a heuristic, without auto-reset."""
    policy = heuristic(name)

    def body(carry, key):
        state, own = carry
        action, own = policy.act(own, env.view(state, params), key)
        obs, after, reward, terminated, info = env.step_env(key, state, action, params)
        return (after, own), (reward, terminated, obs, info)

    @jax.jit
    def episode(key):
        _, state = env.reset_env(key, params)
        keys = jax.random.split(key, intervals)
        (end, _), outcome = jax.lax.scan(body, (state, policy.initial_state(env.instances)), keys)
        return state, end, outcome

    return episode(jax.random.key(seed))


def test_step_returns_six_values_and_resets_when_done(made) -> None:
    env, params = made
    key = jax.random.key(0)
    obs, state = env.reset(key, params)
    chex.assert_shape(obs, (len(GLOBAL_FEATURES) + 3 * len(INSTANCE_FEATURES) + 4,))
    assert env.observation_space(params).shape == obs.shape
    short = params.replace(max_steps_in_episode=jnp.int32(5))
    for step in range(1, 6):
        obs, state, reward, terminated, truncated, info = env.step(key, state, 0, short)
        assert bool(truncated) == (step == 5)
        assert not bool(terminated)
    assert int(state.time) == 0, "the episode was reset"
    assert not np.allclose(info["final_observation"], obs)
    assert reward.dtype == jnp.float32
    assert set(info) == {"void", "preemptions", "terminated", "truncated", "final_observation"}


def test_an_episode_ends_when_the_last_request_has_finished(made) -> None:
    env, params = made
    _, end, (_, terminated, _, info) = run_policy(env, params, "round-robin", 3000)
    assert int(end.cluster.engines.finished.sum()) == 60
    assert int(np.argmax(terminated)) > 100
    assert not bool(info["void"].any())


@pytest.mark.parametrize("name", ["round-robin", "gated-central-queue"])
@pytest.mark.parametrize("order", ["fcfs", "shortest-predicted"])
def test_latency_rewards_sum_to_minus_the_total_latency(name: str, order: str) -> None:
    """The sum over an episode is exactly minus the E2E latency of all requests together."""
    fleet = dataclasses.replace(FLEET, router_order=order)
    env, params = jaxroute.make(fleet=fleet, tables=TABLES[:1])
    _, end, (rewards, *_) = run_policy(env, params, name, 3000)
    assert int(end.cluster.engines.finished.sum()) == 60
    [result] = simulate(fleet, TABLES[0], predict(TABLES[0], "oracle", seed=0), [heuristic(name)])
    total = (result.records.finish_s - TABLES[0].arrival_s).sum()
    assert float(rewards.sum()) == pytest.approx(-total, rel=1e-5)


def test_a_masked_action_holds_and_the_mask_is_the_end_of_the_observation(made) -> None:
    env, params = made
    obs, state = env.reset(jax.random.key(0), params)
    assert env.action_mask(obs).tolist() == [False, False, False, True]
    while int(state.cluster.arrived) == 0:
        obs, state, *_ = env.step(jax.random.key(0), state, 3, params)
    assert env.action_mask(obs).tolist() == [True] * 4
    for action in (3, 7, -1):
        held = env.step(jax.random.key(0), state, action, params)[1]
        assert int(held.cluster.dispatched) == 0
    sent = env.step(jax.random.key(0), state, 1, params)[1]
    assert sent.cluster.engines.admissions.tolist() == [0, 1, 0]


def test_resets_draw_workloads_and_signal_ages(made) -> None:
    env, _ = made
    env, params = jaxroute.make(fleet=FLEET, tables=TABLES, scrape_s=(0.02, 0.2))
    _, states = jax.vmap(env.reset, in_axes=(0, None))(jax.random.split(jax.random.key(1), 200), params)
    assert set(states.index.tolist()) == {0, 1, 2}
    assert set(states.scrape_period.tolist()) == set(range(1, 11))


def test_the_age_of_the_signal_is_seen_and_the_scrape_is_that_old() -> None:
    env, params = jaxroute.make(fleet=FLEET, tables=TABLES[:1], scrape_s=(0.2, 0.2))

    def body(state, key):
        after = env.step_env(key, state, state.cluster.dispatched % 3, params)[1]
        return after, (env.view(after, params), after.cluster.engines.running)

    _, state = env.reset_env(jax.random.key(0), params)
    _, (views, running) = jax.lax.scan(body, state, jax.random.split(jax.random.key(0), 100))
    age = np.round(np.asarray(views.scraped_age) / 0.02).astype(int)
    assert age[:21].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2 + [1]
    for step in range(10, 100):
        assert views.scraped_running[step].tolist() == running[step - age[step]].tolist()


def test_changing_the_hidden_truth_changes_no_observation() -> None:
    """Output lengths that nobody has seen yet (no request finishes meanwhile) leave both observations as they are."""
    short = TABLES[0].replace(output_tokens=np.maximum(TABLES[0].output_tokens, 60))
    for observation in ("rich", "paper"):
        seen = []
        for table in (short, short.replace(output_tokens=short.output_tokens + 300)):
            env, params = jaxroute.make(fleet=FLEET, tables=[table], prediction="none", observation=observation)
            workloads = params.workloads
            same = jnp.full_like(workloads.predicted_tokens, 100)
            blind = workloads.replace(predicted_tokens=same, predicted_upper=same, predicted_bucket=same // 50)
            seen.append(run_policy(env, params.replace(workloads=blind), "round-robin", 40)[2][2])
        np.testing.assert_array_equal(*seen)
        assert np.abs(np.diff(seen[0], axis=0)).sum() > 1


def test_runs_under_gymnaxs_wrappers_and_the_legacy_api(made) -> None:
    env, params = made
    wrapped = LegacyStepAPIWrapper(LogWrapper(env))
    params = params.replace(max_steps_in_episode=jnp.int32(20))
    keys = jax.random.split(jax.random.key(0), 4)
    obs, state = jax.vmap(wrapped.reset, in_axes=(0, None))(keys, params)

    @jax.jit
    def rollout(state):
        def body(state, key):
            actions = jax.random.randint(key, (4,), 0, env.num_actions)
            step = jax.vmap(wrapped.step, in_axes=(0, 0, 0, None))
            obs, state, reward, done, info = step(jax.random.split(key, 4), state, actions, params)
            return state, (obs, reward, done, info["returned_episode_lengths"])

        return jax.lax.scan(body, state, jax.random.split(jax.random.key(1), 45))

    # gymnax's own wrappers mix booleans and integers.
    with jax.numpy_dtype_promotion("standard"):
        _, (seen, reward, done, lengths) = rollout(state)
    assert seen.shape == (45, *obs.shape)
    assert np.flatnonzero(done[:, 0]).tolist() == [19, 39]
    assert lengths[-1].tolist() == [20] * 4
    assert (reward <= 0).all()


def test_params_can_be_vmapped_and_the_step_is_traced_once(made) -> None:
    env, params = made
    # An H100 fits up to four steps into an interval; with the V100's two its runs would be void, and reset.
    env = dataclasses.replace(env, config=dataclasses.replace(env.config, max_steps_per_interval=4))
    fast = load_profile("h100-80gb-llama2-7b").with_kv_tokens(3000)
    other = Fleet((fast,) * 3, ("prefill-first",) * 3).params()
    both = params.replace(cluster=jax.tree.map(lambda *leaves: jnp.stack(leaves), params.cluster, other))
    axes = EnvParams(cluster=0, workloads=None, max_steps_in_episode=None, scrape_periods=None, penalty_weight=None)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, state, action, params):
        return jax.vmap(env.step, in_axes=(None, 0, None, axes))(key, state, action, params)

    key = jax.random.key(0)
    _, state = jax.vmap(env.reset, in_axes=(None, axes))(key, both)
    for turn in range(60):
        _, state, *_ = step(key, state, jnp.int32(turn % 3), both)
    decoded = state.cluster.engines.decode_count.sum(-1)
    assert decoded[1] > 2 * decoded[0]
    assert isinstance(state, EnvState)


def test_gymnax_makes_the_default_environment() -> None:
    register()
    env, params = gymnax.make("ClusterRouting-v0")
    obs, state = env.reset(jax.random.key(0), params)
    assert env.name == "ClusterRouting-v0"
    assert env.num_actions == 5
    assert env.action_space(params).n == 5
    assert env.step(jax.random.key(0), state, 4)[0].shape == obs.shape


def test_wrong_names_are_refused() -> None:
    with pytest.raises(InputError, match="unknown environment 'Cluster-v1'"):
        jaxroute.make("Cluster-v1", fleet=FLEET, tables=TABLES)
    with pytest.raises(InputError, match="at least one workload"):
        jaxroute.make(fleet=FLEET, tables=[])
    env, _ = jaxroute.make(fleet=FLEET, tables=TABLES)
    with pytest.raises(ValueError, match="pass the parameters"):
        _ = env.default_params
    with pytest.raises(ValueError, match="needs counts by bucket"):
        ClusterRouting(FLEET.config(10, records=False), 3, "latency", "paper")
    with pytest.raises(ValueError, match="unknown reward"):
        ClusterRouting(FLEET.config(10, records=False), 3, "speed")  # type: ignore[arg-type]
