"""Whole episodes cost what `simulate` says of the same requests."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LEAST_KV, NETWORK, ROUND_ROBIN, SCALES, V100, first_weights, make_group

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.export import policy_file_of
from jaxroute.policies import Policy
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.results import RunResult
from jaxroute.simulate import Fleet, simulate
from jaxroute.train.episode import Greedy, Outcome, play
from jaxroute.train.state import Params
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

DT = 0.02
FLEETS = tuple(Fleet((V100, V100.with_kv_tokens(tokens)), ("chunked", "prefill-first")) for tokens in (3000, 2500))
# With 101 values, the 99th percentile is the second largest; the shorter table is padded.
TABLES = (five_task(101, 12.0, 0), five_task(60, 12.0, 1))
KEY = jax.random.key(0)

episode = jax.jit(play, static_argnames=("env", "policy", "records"))


def group(max_steps: int | None = None) -> tuple[ClusterRouting, EnvParams]:
    """Two lanes, the second one with the tables the other way round."""
    return make_group(FLEETS, [TABLES, TABLES[::-1]], max_steps=max_steps)


def truth(lane: int, table: RequestTable, policy: Policy) -> RunResult:
    [result] = simulate(FLEETS[lane], table, predict(table, "0.8", seed=0), [policy])
    return result


def e2e(result: RunResult) -> np.ndarray:
    """[N] seconds at the servers, without what only a client sees."""
    return result.records.finish_s - result.table.arrival_s


@pytest.fixture(scope="module", params=[ROUND_ROBIN, LEAST_KV], ids=lambda policy: policy.name)
def runs(request: pytest.FixtureRequest) -> tuple[Outcome, list[RunResult]]:
    env, params = group()
    outcome = episode(env, request.param, params, jnp.zeros(2, jnp.int32), KEY, records=True)
    return outcome, [truth(lane, TABLES[lane], request.param) for lane in range(2)]


def test_means_percentiles_and_makespan_are_those_of_simulate(runs: tuple[Outcome, list[RunResult]]) -> None:
    outcome, results = runs
    assert outcome.complete.tolist() == [1, 1]
    for lane, result in enumerate(results):
        assert float(outcome.e2e_mean[lane]) == pytest.approx(e2e(result).mean(), abs=0.03)
        assert float(outcome.makespan[lane]) == pytest.approx(result.records.finish_s.max(), abs=0.03)
        # Of 60 values the percentile lies between two; the outcome has the upper one.
        p99 = partial(np.percentile, q=99, method="higher")
        assert float(outcome.e2e_p99[lane]) == pytest.approx(p99(e2e(result)), abs=1e-3)
        ttft = result.records.first_token_s - result.table.arrival_s
        assert float(outcome.ttft_p99[lane]) == pytest.approx(p99(ttft), abs=1e-3)
    assert float(outcome.e2e_p99[0]) == pytest.approx(np.percentile(e2e(results[0]), 99), abs=1e-3)
    assert float(outcome.e2e_mean[0]) > 1


def test_an_index_picks_the_table_and_records_change_nothing_else() -> None:
    env, params = group()
    plain = episode(env, LEAST_KV, params, jnp.ones(2, jnp.int32), KEY)
    for lane, table in enumerate(TABLES[::-1]):
        assert float(plain.e2e_mean[lane]) == pytest.approx(e2e(truth(lane, table, LEAST_KV)).mean(), abs=0.03)
    assert plain.e2e_p99.tolist() == [0, 0]


def test_lateness_is_what_latencies_exceed_the_bound_by() -> None:
    env, params = group()
    bound_s = np.asarray([[2.0, 2.0], [4.0, 4.0]])
    bound = jnp.asarray(np.round(bound_s / DT), jnp.int32)
    instances = params.cluster.instances.replace(late_after=bound)
    late = params.replace(cluster=params.cluster.replace(instances=instances))
    outcome = episode(env, LEAST_KV, late, jnp.zeros(2, jnp.int32), KEY)
    for lane in range(2):
        result = truth(lane, TABLES[lane], LEAST_KV)
        steps = np.floor(result.records.finish_s / DT + 1e-6) - np.floor(result.table.arrival_s / DT + 1e-6)
        expected = np.maximum(steps - round(bound_s[lane, 0] / DT), 0).sum() * DT / len(result.table)
        assert float(outcome.late_mean[lane]) == pytest.approx(expected, abs=1e-3)
        assert expected > 0.1
    without = episode(env, LEAST_KV, params, jnp.zeros(2, jnp.int32), KEY)
    assert without.late_mean.tolist() == [0, 0]
    np.testing.assert_array_equal(without.e2e_mean, outcome.e2e_mean)


def test_an_episode_that_is_cut_off_is_not_complete() -> None:
    env, params = group(max_steps=300)
    outcome = episode(env, LEAST_KV, params, jnp.zeros(2, jnp.int32), KEY)
    assert outcome.complete.tolist() == [0, 0]
    np.testing.assert_allclose(outcome.makespan, [6, 6], rtol=1e-5)
    half = params.replace(max_steps_in_episode=jnp.asarray([300, 5000], jnp.int32))
    again = episode(env, LEAST_KV, half, jnp.zeros(2, jnp.int32), KEY)
    assert again.complete.tolist() == [0, 1]
    # Time stops for the lane that was cut off while the other one goes on.
    assert float(again.makespan[0]) == pytest.approx(6, rel=1e-5)
    assert float(again.makespan[1]) > 8


def test_a_network_plays_as_the_policy_that_is_exported_from_it() -> None:
    env, params = group()
    weights = jax.tree.map(lambda leaf: 20 * leaf, first_weights(3))

    @partial(jax.jit, static_argnames="env")
    def greedy(env: ClusterRouting, params: EnvParams, weights: Params) -> Outcome:
        return play(env, Greedy(NETWORK, "rich", weights, SCALES), params, jnp.zeros(2, jnp.int32), KEY)

    outcome = greedy(env, params, weights)
    file = policy_file_of(
        name="same",
        params=weights,
        scales=SCALES,
        encoding="rich",
        buckets=0,
        hidden=NETWORK.hidden,
        holds=True,
        router_order="fcfs",
        ageing=5.0,
        dt=DT,
        profiles=("v100",),
        training={},
    )
    for lane in range(2):
        result = truth(lane, TABLES[lane], LearnedPolicy.of(file))
        assert float(outcome.e2e_mean[lane]) == pytest.approx(e2e(result).mean(), abs=0.03)
        assert set(result.records.instance) == {0, 1}
