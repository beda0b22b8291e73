from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxroute
from jaxroute.cluster import fleet
from jaxroute.cluster.view import router_view
from jaxroute.impact import mixing_penalty
from jaxroute.policies import heuristic
from jaxroute.profiles import load_profile
from jaxroute.reward import paper_reward, remaining_work
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict

V100 = load_profile("v100-32gb-llama2-7b").with_kv_tokens(1600)
FLEET = Fleet((V100,) * 2, ("chunked",) * 2)
TABLE = five_task(50, 25.0, seed=4)


@pytest.fixture(scope="module")
def run():
    """Every state of a starved round-robin run, and the environment's parameters."""
    env, params = jaxroute.make(fleet=FLEET, tables=[TABLE], reward="paper", penalty_weight=0.5)
    workload = jax.tree.map(lambda leaf: leaf[0], params.workloads)

    def body(state, _):
        after, _ = fleet.step(env.config, params.cluster, workload, state, state.dispatched % 2)
        return after, (after, router_view(env.config, params.cluster, workload, after))

    start = fleet.initial_state(env.config, params.cluster, workload)
    _, (states, views) = jax.jit(lambda s: jax.lax.scan(body, s, None, length=2500))(start)
    assert int(states.engines.finished[-1].sum()) == 50
    assert int(states.engines.preemptions[-1].sum()) > 10
    return env, params, workload, states, views


def test_remaining_work_counts_every_unfinished_request_by_its_own_progress(run) -> None:
    """Against the records of the run: streamed tokens of each request at the time, one by one."""
    _, _, workload, states, _ = run
    prediction = predict(TABLE, "oracle", seed=0)
    [result] = simulate(FLEET, TABLE, prediction, [heuristic("round-robin")])
    records = result.records
    for step in (50, 120, 180, 260):
        now = (step + 1) * FLEET.dt
        state = jax.tree.map(lambda leaf, step=step: leaf[step], states)
        unfinished = (TABLE.arrival_s <= now) & (records.finish_s > now)
        begun = unfinished & (records.first_token_s <= now)
        ideal = np.asarray(workload.ideal_s)
        most = float((1 / ideal[unfinished]).sum())
        least = most - float((1 / ideal[begun]).sum())
        value = float(remaining_work(workload, state))
        assert least < value < most
        fresh = state.engines.in_flight_tokens.sum() == 0
        assert not fresh
    end = jax.tree.map(lambda leaf: leaf[-1], states)
    assert float(remaining_work(workload, end)) == 0


def test_waiting_requests_count_in_full_and_half_done_ones_by_half(run) -> None:
    env, params, workload, _, _ = run
    state = fleet.initial_state(env.config, params.cluster, workload)
    while int(state.arrived) < 3:
        state, _ = fleet.step(env.config, params.cluster, workload, state, jnp.int32(2))
    expected = float((1 / np.asarray(workload.ideal_s[:3])).sum())
    assert float(remaining_work(workload, state)) == pytest.approx(expected, rel=1e-6)


def test_ideal_times_are_prompt_and_output_at_the_profiles_speed(run) -> None:
    workload = run[2]
    predicted = np.asarray(workload.predicted_tokens)
    per_prompt = (V100.step_ms([(1000, 0)], []) - V100.step_ms([(1, 0)], [])) / 999
    expected = (TABLE.prompt_tokens * per_prompt + predicted * V100.step_ms([], [512])) / 1e3
    np.testing.assert_allclose(workload.ideal_s, expected, rtol=1e-5)


def test_the_papers_reward_is_its_three_terms(run) -> None:
    _, _, workload, states, views = run
    pick = lambda tree, step: jax.tree.map(lambda leaf: leaf[step], tree)  # noqa: E731
    finished = np.asarray(states.engines.finished.sum(-1))
    step = int(np.flatnonzero(np.diff(finished) > 0)[10])
    before, after, view = pick(states, step), pick(states, step + 1), pick(views, step)
    penalty = mixing_penalty(view, jnp.int32(1), jnp)
    completions = finished[step + 1] - finished[step]
    for weight in (0.0, 1.0):
        value = paper_reward(workload, before, after, penalty, penalty_weight=jnp.float32(weight))
        expected = -float(remaining_work(workload, after)) + 60 * completions - weight * float(penalty)
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_the_mixing_reward_is_the_penalty_alone(run) -> None:
    params = run[1]
    rng = np.random.default_rng(0)
    env, _ = jaxroute.make(fleet=FLEET, tables=[TABLE], reward="mixing")
    step = jax.jit(env.step_env)
    _, state = env.reset_env(jax.random.key(0), params)
    found = []
    for number in range(60):
        view, action = env.view(state, params), jnp.int32(rng.integers(3))
        _, state, reward, _, _ = step(jax.random.key(number), state, action, params)
        found.append(float(reward))
        assert float(reward) == pytest.approx(-0.5 * float(mixing_penalty(view, action, jnp)), abs=1e-6)
    assert min(found) < 0
    assert max(found) == 0


def test_counts_by_bucket_are_those_of_the_requests_in_flight(run) -> None:
    views = run[-1]
    in_flight = np.asarray(views.in_flight)
    awaiting, streaming = np.asarray(views.awaiting_by_bucket), np.asarray(views.streaming_by_bucket)
    assert (awaiting >= 0).all()
    assert (streaming >= 0).all()
    np.testing.assert_array_equal(awaiting.sum(-1), views.awaiting_first)
    np.testing.assert_array_equal(awaiting.sum(-1) + streaming.sum(-1), in_flight)
    assert streaming.max() > 1
    least = np.asarray(views.least_predicted_left)
    assert (least <= np.asarray(views.predicted_tokens_left)).all()
    assert least.max() > 20
