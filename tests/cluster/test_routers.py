"""Several routers that share no state: each has its own queue, sees its own requests, and they take turns."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.cluster import fleet
from jaxroute.cluster.own_load import own_load
from jaxroute.cluster.params import make_config, make_params
from jaxroute.cluster.router_queue import are_at_router, head_of
from jaxroute.cluster.view import router_view
from jaxroute.errors import InputError
from jaxroute.policies.count_based import JoinShortestQueue, RoundRobin
from jaxroute.policies.in_turn import in_turn
from jaxroute.policies.token_based import MaxCapacity
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.types import NEVER, RouterView
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict

ROUTERS, INTERVALS = 3, 900
V100 = load_profile("v100-32gb-llama2-7b")


def states_of(case: cases.Case, config, *, hold: float = 0.4):
    """[T] states of a run with random actions, some of which hold."""
    params, workload = make_params(case.profiles, case.schedulers), case.workload

    def body(state, key):
        action = jax.random.randint(key, (), 0, cases.INSTANCES)
        action = jnp.where(jax.random.uniform(jax.random.fold_in(key, 1)) < hold, cases.INSTANCES, action)
        return fleet.step(config, params, workload, state, action)[0], state

    start = fleet.initial_state(config, params, workload)
    return params, workload, jax.lax.scan(body, start, jax.random.split(jax.random.key(3), INTERVALS))[1]


@pytest.mark.parametrize("scheduler", ["prefill-first", "chunked"])
def test_what_the_routers_know_of_the_instances_adds_up_to_what_one_router_would(scheduler: str) -> None:
    case = cases.random_case(15, scheduler=scheduler)
    config = dataclasses.replace(case.config, records=False, buckets=3)
    params, workload, states = jax.jit(lambda: states_of(case, config, hold=0.0))()
    split = dataclasses.replace(config, routers=ROUTERS)

    def loads(engines, router):
        return jax.vmap(lambda engine: own_load(split, workload, router, engine))(engines)

    whole = jax.jit(jax.vmap(lambda state: router_view(config, params, workload, state)))(states)
    parts = jax.jit(jax.vmap(jax.vmap(loads, in_axes=(None, 0)), in_axes=(0, None)))(
        states.engines, jnp.arange(ROUTERS, dtype=jnp.int32)
    )
    pairs = {
        "in_flight": "in_flight",
        "tokens": "in_flight_tokens",
        "awaiting": "awaiting_first",
        "awaiting_prompt_tokens": "awaiting_prompt_tokens",
        "predicted_tokens_left": "predicted_tokens_left",
        "awaiting_by_bucket": "awaiting_by_bucket",
        "streaming_by_bucket": "streaming_by_bucket",
    }
    for own, together in pairs.items():
        np.testing.assert_array_equal(np.asarray(getattr(parts, own)).sum(1), getattr(whole, together), own)
        # Every router has something somewhere, so that no sum is of one term only.
        assert np.asarray(getattr(parts, own)).any((0, 2)).reshape(ROUTERS, -1).any(-1).all(), own
    streaming = np.asarray(parts.streaming_by_bucket).sum(-1) > 0
    least = np.where(streaming, np.asarray(parts.least_predicted_left), NEVER).min(1)
    np.testing.assert_array_equal(np.where(least == NEVER, 0, least), whole.least_predicted_left)
    assert int(states.engines.preemptions[-1].sum()) > 0


@pytest.mark.parametrize("order", ["fcfs", "shortest-predicted"])
def test_each_router_sends_its_own_requests_in_its_order(order: str) -> None:
    case = cases.random_case(7)
    config = make_config(
        case.profiles, queue_capacity=cases.REQUESTS, router_order=order, records=True, routers=ROUTERS
    )
    _, workload, states = jax.jit(lambda: states_of(case, config))()
    heads = np.asarray(jax.jit(jax.vmap(lambda state: head_of(workload, state)))(states))
    sent_at = np.asarray(states.dispatch_step[-1])[: len(case.table)]
    assert (sent_at >= 0).all()
    assert len(set(sent_at)) == len(sent_at)
    for request, step in enumerate(sent_at):
        assert step % ROUTERS == request % ROUTERS
        assert heads[step] == request
        if order == "fcfs":
            assert (sent_at[request % ROUTERS : request : ROUTERS] < step).all()
        else:
            waiting = np.asarray(states.held[step])[request % ROUTERS :: ROUTERS]
            assert np.asarray(states.held[step])[request] == waiting.min()


def test_a_router_sees_its_own_queue_and_counts_its_own_turns() -> None:
    case = cases.random_case(7)
    config = dataclasses.replace(case.config, routers=ROUTERS)
    params, workload, states = jax.jit(lambda: states_of(case, config, hold=0.9))()
    views = jax.jit(jax.vmap(lambda state: router_view(config, params, workload, state)))(states)
    arrived, sent_at = np.asarray(states.arrived), np.asarray(states.dispatch_step[-1])[: len(case.table)]
    for now in range(0, INTERVALS, 7):
        router = now % ROUTERS
        here = np.arange(len(case.table)) % ROUTERS == router
        sent = here & (sent_at >= 0) & (sent_at < now)
        known = here & (np.arange(len(case.table)) < arrived[now])
        # What is sent after the last state of the run has no stamp in it.
        assert int(views.queue_length[now]) == (known & ~sent).sum()
        assert int(views.dispatched[now]) == sent.sum()
        assert int(views.router[now]) == router
        assert int(views.now[now]) == now // ROUTERS
    np.testing.assert_allclose(views.dt, case.dt * ROUTERS, rtol=1e-6)
    waits = jax.jit(jax.vmap(lambda state: are_at_router(workload, state)))(states)
    np.testing.assert_array_equal(np.asarray(waits).sum(1), arrived - np.asarray(states.dispatched))


def test_a_policy_has_a_state_of_its_own_at_each_router() -> None:
    @dataclasses.dataclass(frozen=True)
    class Counting:
        name: str = "counting"

        def initial_state(self, instances: int):
            return jnp.int32(10)

        def act(self, state, view: RouterView, key):
            return state % 3, state + 1

    case = cases.random_case(7)
    config = dataclasses.replace(case.config, routers=2)
    params, workload = make_params(case.profiles, case.schedulers), case.workload
    policy = in_turn(Counting(), 2)
    state, cluster = policy.initial_state(cases.INSTANCES), fleet.initial_state(config, params, workload)
    seen = []
    for _ in range(3):
        view = router_view(config, params, workload, cluster)
        action, state = policy.act(state, view, jax.random.key(0))
        seen.append(int(action))
        cluster, _ = fleet.step(config, params, workload, cluster, action)
    assert seen == [1, 1, 2]
    assert in_turn(Counting(), 1) == Counting()


def test_policies_run_at_several_routers_to_the_end() -> None:
    table = five_task(300, 11.0, 500_000)
    prediction = predict(table, "oracle", seed=0)
    profile = V100.with_kv_tokens(3800)
    policies = [JoinShortestQueue(), RoundRobin(), MaxCapacity()]

    def runs(routers: int):
        servers = Fleet((profile,) * 4, ("chunked",) * 4, dt=0.02 / routers, routers=routers)
        return simulate(servers, table, prediction, policies)

    results = runs(4)
    assert all(np.isfinite(run.records.finish_s).all() for run in results)
    # Request n is the n // 4th of its router: four after the other go to one instance.
    np.testing.assert_array_equal(results[1].records.instance, np.arange(300) // 4 % 4)


def test_the_view_of_one_router_has_no_part_of_another() -> None:
    """Requests of other routers may be anything: the view differs in scraped metrics at the most."""

    case = cases.random_case(9)
    config = dataclasses.replace(case.config, routers=2, records=False)
    params, workload = make_params(case.profiles, case.schedulers), case.workload
    other = jnp.arange(cases.REQUESTS) % 2 == 1
    changed = workload.replace(
        predicted_tokens=jnp.where(other, 7, workload.predicted_tokens),
        predicted_bucket=jnp.where(other, 0, workload.predicted_bucket),
    )

    def views(workload):
        def body(state, _):
            state, _ = fleet.step(config, params, workload, state, state.arrived % 2)
            return state, router_view(config, params, workload, state)

        return jax.lax.scan(body, fleet.initial_state(config, params, workload), None, length=400)[1]

    before, after = jax.jit(views)(workload), jax.jit(views)(changed)
    mine = np.asarray(before.router) == 0
    for name in ("predicted_tokens_left", "least_predicted_left", "head_predicted_tokens", "in_flight_tokens"):
        one, two = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
        np.testing.assert_array_equal(one[mine], two[mine])
        if name == "predicted_tokens_left":
            assert (one[~mine] != two[~mine]).any()


def test_evaluate_takes_several_numbers_of_routers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    common = ["evaluate", "--profile", "v100-32gb-llama2-7b", "--kv-tokens", "3800", "--workloads", "five-task"]
    cells = ["--loads", "0.9", "--instances", "2", "--seeds", "2", "--requests", "60", "--out", str(out)]
    main([*common, *cells, "--policies", "round-robin,least-kv", "--routers", "1,2"])
    with (out / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["routers"] for row in rows] == ["1"] * 4 + ["2"] * 4
    assert "2 instances, 2 routers" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main([*common, *cells, "--policies", "least-kv", "--routers", "0"])
    assert stop.value.code == 2


def test_no_router_is_refused() -> None:
    with pytest.raises(InputError, match="routers is 0"):
        Fleet((V100,), ("chunked",), routers=0).config(1, records=False)
