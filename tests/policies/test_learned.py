"""A trained policy in the simulator: it decides as its runner does, and serves a workload to its end."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.candidates import Candidate, candidate
from jaxroute.evaluate import Cell, evaluate
from jaxroute.observation import Encoding, observe
from jaxroute.policies import Policy
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.policies.runner import Runner
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict
from trained import BUCKETS, random_observed, random_policy
from views import FIELDS_BY_INSTANCE, view

PROFILE = dataclasses.replace(load_profile("v100-32gb-llama2-7b"), max_num_seqs=16)


def random_view(seed: int, instances: int = 4):
    rng = np.random.default_rng(seed)
    return view(
        instances,
        **{name: rng.integers(0, 100, instances) for name in FIELDS_BY_INSTANCE},
        queue_length=rng.integers(0, 4),
        full=rng.random(instances) < 0.3,
        awaiting_by_bucket=rng.integers(0, 9, (instances, BUCKETS)),
        streaming_by_bucket=rng.integers(0, 9, (instances, BUCKETS)),
    )


@pytest.mark.parametrize("encoding", ["rich", "paper"])
@pytest.mark.parametrize("holds", [True, False])
def test_it_decides_as_its_runner_does(encoding: Encoding, holds: bool) -> None:
    file = random_policy(encoding, holds=holds)
    policy, runner = LearnedPolicy.of(file), Runner(file)
    act = jax.jit(lambda seen: policy.act((), seen, jax.random.key(0))[0])
    chosen = set()
    for seed in range(30):
        seen = random_view(seed)
        action = act(seen)
        assert action.dtype == jnp.int32
        assert int(action) == runner.decide(jax.tree.map(np.asarray, observe(seen, encoding, jnp)))
        assert int(action) == 4 or (not seen.full[action] and seen.queue_length > 0)
        chosen.add(int(action))
    assert len(chosen) >= 3


def test_its_logits_are_those_of_its_runner() -> None:
    file = random_policy()
    observed = random_observed("rich", 4, 0)
    logits = LearnedPolicy.of(file).logits(jax.tree.map(jnp.asarray, observed))
    np.testing.assert_allclose(logits, Runner(file).logits(observed), rtol=1e-5, atol=1e-5)


def test_it_is_known_by_the_content_of_its_file() -> None:
    first, same, other = (LearnedPolicy.of(random_policy(seed=seed)) for seed in (0, 0, 1))
    assert first == same
    assert hash(first) == hash(same)
    assert first != other
    assert isinstance(first, Policy)
    assert (first.name, first.router_order, first.ageing, first.buckets) == ("made-up", "fcfs", 5.0, 0)
    assert first.spf_edges == ()
    assert LearnedPolicy.of(random_policy(spf_edges=(64, 256))).spf_edges == (64, 256)
    assert LearnedPolicy.of(random_policy("paper"), "mine").buckets == 7
    assert LearnedPolicy.of(random_policy("paper"), "mine").name == "mine"


@pytest.mark.parametrize("encoding", ["rich", "paper"])
def test_it_serves_a_workload_to_its_end(encoding: Encoding) -> None:
    table = five_task(40, 20.0, seed=0)
    policy = LearnedPolicy.of(random_policy(encoding, holds=False))
    fleet = Fleet((PROFILE,) * 3, ("chunked",) * 3, buckets=policy.buckets)
    [result] = simulate(fleet, table, predict(table, "oracle", seed=0), [policy])
    assert result.policy == "made-up"
    assert (result.records.finish_s > table.arrival_s).all()
    assert set(result.records.instance) <= {0, 1, 2}


def test_evaluate_runs_it_beside_heuristics_with_its_own_order_and_ageing() -> None:
    tables = tuple(five_task(60, 40.0, seed=seed) for seed in (0, 1))
    cell = Cell("five-task", Fleet((PROFILE,) * 2, ("chunked",) * 2), 1.0, 40.0, (0, 1), tables)
    learned = LearnedPolicy.of(random_policy("paper", holds=False), "learned")
    # Round robin, whose state the queue's order does not touch, stands for a policy that was trained with an ageing.
    robin = candidate("round-robin+spf")
    aged = dataclasses.replace(robin, name="aged", ageing=1e6)
    as_fleet = dataclasses.replace(robin, name="as the fleet", ageing=cell.fleet.ageing)
    candidates = [Candidate("learned", learned, buckets=7), candidate("round-robin"), robin, aged, as_fleet]
    [rows] = evaluate([cell], candidates)
    assert [(row.policy, row.seed) for row in rows[:2]] == [("learned", 0), ("learned", 1)]
    by_name = {row.policy: row for row in rows if row.seed == 0}
    assert by_name["as the fleet"].e2e_mean_s == by_name["round-robin+spf"].e2e_mean_s
    assert by_name["aged"].e2e_mean_s != by_name["round-robin+spf"].e2e_mean_s
    # With so much ageing the first to come is the first to be served.
    assert by_name["aged"].router_wait_mean_s == pytest.approx(by_name["round-robin"].router_wait_mean_s, rel=1e-6)


def test_evaluate_ranks_for_each_policy_by_its_own_edges() -> None:
    tables = (five_task(60, 40.0, seed=0),)
    # Little KV cache, so that most requests wait at the router.
    fleet = Fleet((PROFILE.with_kv_tokens(2500),) * 2, ("chunked",) * 2, ageing=0.0, spf_edges=(256,))
    cell = Cell("five-task", fleet, 1.0, 40.0, (0,), tables)
    gate = candidate("gated-central-queue+spf")
    plain = dataclasses.replace(gate, name="plain", spf_edges=())
    one_class = dataclasses.replace(gate, name="one class", spf_edges=(100_000,))
    [rows] = evaluate([cell], [gate, plain, one_class, candidate("gated-central-queue")])
    e2e = {row.policy: row.e2e_mean_s for row in rows}
    # In one class there is only the order of arrival.
    assert e2e["one class"] == pytest.approx(e2e["gated-central-queue"], rel=1e-6)
    assert len(set(np.round(list(e2e.values()), 3))) == 3
    [[alone]] = evaluate([dataclasses.replace(cell, fleet=dataclasses.replace(fleet, spf_edges=()))], [gate])
    assert alone.e2e_mean_s == pytest.approx(e2e["plain"], rel=1e-6)
