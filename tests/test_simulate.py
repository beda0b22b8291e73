"""The library call: what it refuses to represent it says."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cluster.params import check_requests_fit, make_config, steps_per_interval
from jaxroute.errors import InputError
from jaxroute.policies import heuristic
from jaxroute.profiles import load_profile
from jaxroute.progress import VoidRunError, check_progress
from jaxroute.rollout import run_intervals, run_to_end, stack_lanes, start_lane
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload.device import to_device
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable
from views import view

V100 = load_profile("v100-32gb-llama2-7b")
TABLE = five_task(120, 40.0, seed=1)
PREDICTION = predict(TABLE, "oracle", seed=0)


@dataclasses.dataclass(frozen=True)
class Never:
    """A router that holds everything for ever."""

    name: str = "never"

    def initial_state(self, instances: int) -> tuple:
        del instances
        return ()

    def act(self, state: tuple, seen, key: jax.Array) -> tuple[jax.Array, tuple]:
        del key
        return jnp.int32(seen.full.shape[0]), state


@dataclasses.dataclass(frozen=True)
class AlwaysFirst:
    """A router that sends everything to instance 0, full or not."""

    name: str = "always-first"

    def initial_state(self, instances: int) -> tuple:
        del instances
        return ()

    def act(self, state: tuple, seen, key: jax.Array) -> tuple[jax.Array, tuple]:
        del seen, key
        return jnp.int32(0), state


def test_a_request_that_finds_no_place_voids_the_run_and_names_the_number_to_raise() -> None:
    fleet = Fleet((V100,) * 2, ("chunked",) * 2, queue_capacity=20)
    with pytest.raises(VoidRunError, match="instance 0 was sent more than 20 requests at a time; raise queue_capacity"):
        simulate(fleet, TABLE, PREDICTION, [AlwaysFirst()])
    # The same load under a policy that sees the fleet fill up: it holds, and nothing is lost.
    [result] = simulate(fleet, TABLE, PREDICTION, [heuristic("join-shortest-queue")])
    assert len(result.records.finish_s) == len(TABLE)
    assert (result.records.finish_s > TABLE.arrival_s).all()


def test_a_router_that_never_dispatches_is_given_up() -> None:
    fleet = Fleet((V100,), ("chunked",))
    with pytest.raises(VoidRunError, match="never on five-task: the router still holds 120 requests"):
        simulate(fleet, TABLE, PREDICTION, [Never()])


def test_too_many_engine_steps_in_an_interval_are_detected() -> None:
    fleet = Fleet((load_profile("h100-80gb-llama2-7b"),), ("chunked",))
    config = dataclasses.replace(fleet.config(len(TABLE), records=True), max_steps_per_interval=1)
    params, workload = fleet.params(), to_device(TABLE, PREDICTION, dt=fleet.dt)
    policy = heuristic("round-robin")
    lanes = stack_lanes(start_lane(config, params, workload, (), jax.random.key(0)), 1)
    lanes, _ = run_intervals(config, policy, params, workload, lanes, length=100)
    with pytest.raises(VoidRunError, match="more than 1 engine steps in one interval; lower dt"):
        check_progress(lanes.cluster, ["round-robin"], TABLE, config, fleet.dt)


def test_a_request_that_could_never_run_is_named_before_the_run() -> None:
    table = RequestTable.create([0.0, 1.0], [100, 1500], [10, 900], name="two")
    tiny = V100.with_kv_tokens(2000)
    message = r"two: request 1 \(1500 prompt \+ 900 output tokens\) can never run on v100-32gb.*KV cache of 2000 tokens"
    with pytest.raises(InputError, match=message):
        simulate(Fleet((tiny,), ("chunked",)), table, predict(table, "oracle", seed=0), [heuristic("random")])


@pytest.mark.parametrize("scheduler", ["chunked", "whole-prompt", "prefill-first"])
def test_the_longest_request_that_is_let_in_runs_and_one_token_more_is_refused(scheduler: str) -> None:
    """The limits are exact: the last output token needs no place in the cache, a prompt needs the watermark."""
    profile = V100.with_kv_tokens(3200)
    fleet = Fleet((profile,), (scheduler,))
    most_prompt = 3200 - (32 if scheduler == "prefill-first" else 0)
    for prompt, output in ((most_prompt, 3201 - most_prompt), (2500, 701)):
        table = RequestTable.create([0.0], [prompt], [output], name="one")
        [result] = simulate(fleet, table, predict(table, "oracle", seed=0), [heuristic("random")])
        assert result.records.preemptions.tolist() == [0]
        with pytest.raises(InputError, match="can never run"):
            check_requests_fit(table.prompt_tokens + 1, table.output_tokens, profile, scheduler, "one")


def test_a_preempted_request_that_cannot_be_resumed_is_reported_not_lost() -> None:
    """Whole prompts of 100 fit the budget of 120 tokens; with over 20 generated tokens they no longer do."""
    profile = dataclasses.replace(V100.with_kv_tokens(256), max_num_batched_tokens=120, max_num_seqs=16)
    table = RequestTable.create([0.0, 0.0, 0.0], [100, 100, 100], [60, 60, 60], name="three")
    fleet = Fleet((profile,), ("whole-prompt",))
    assert fleet.longest_request == 121
    with pytest.raises(VoidRunError, match="a preempted request at instance 0 can never be resumed"):
        simulate(fleet, table, predict(table, "oracle", seed=0), [heuristic("random")])


def test_slots_below_max_num_seqs_and_no_places_are_refused() -> None:
    with pytest.raises(InputError, match=r"slots is 64, but a profile runs up to max_num_seqs = 128.*raise slots"):
        make_config([V100], queue_capacity=10, slots=64)
    with pytest.raises(InputError, match="queue_capacity is 0"):
        make_config([V100], queue_capacity=0)


def test_steps_per_interval_is_the_smallest_count_that_is_never_exceeded() -> None:
    # V100: 19.9 ms for a lone short prefill, so a second step can end within 20 ms; a decode step takes 20.4 ms.
    assert steps_per_interval(V100, 0.02) == 2
    assert steps_per_interval(V100, 0.0198) == 1
    assert steps_per_interval(load_profile("h100-80gb-llama2-7b"), 0.02) == 4
    constant = dataclasses.replace(V100, coefficients_ms={**dict.fromkeys("Whgdefxuv", 0.0), "W": 10.0})
    assert steps_per_interval(constant, 0.02) in (2, 3)


def test_every_policy_sees_the_same_requests_and_their_totals_agree() -> None:
    fleet = Fleet((V100.with_kv_tokens(3000),) * 3, ("prefill-first",) * 3)
    results = simulate(fleet, TABLE, PREDICTION, [heuristic("random"), heuristic("round-robin"), heuristic("least-kv")])
    alone = simulate(fleet, TABLE, PREDICTION, [heuristic("round-robin")])[0]
    np.testing.assert_allclose(results[1].records.finish_s, alone.records.finish_s, atol=1e-6)
    assert [result.policy for result in results] == ["random", "round-robin", "least-kv"]
    for result in results:
        timeline = result.timeline
        assert timeline is not None
        computed = timeline.step_prefill_tokens.sum() + timeline.step_decode_seqs.sum()
        needed = (TABLE.prompt_tokens + TABLE.output_tokens - 1).sum() + result.records.recomputed_tokens.sum()
        assert computed == needed
        assert timeline.step_preemptions.sum() == result.records.preemptions.sum()


def test_lanes_in_chunks_over_devices_end_as_each_lane_alone() -> None:
    """The batch of `run_to_end` (two devices, chunks, own workloads) against `simulate`, lane by lane."""
    fleet = Fleet((V100,) * 2, ("chunked",) * 2, queue_capacity=200)
    config, params, policy = fleet.config(60, records=True), fleet.params(), heuristic("round-robin")
    tables = [five_task(60, 20.0, seed=seed) for seed in range(4)]
    columns = [to_device(table, predict(table, "oracle", seed=0), dt=fleet.dt) for table in tables]
    workloads = jax.tree.map(lambda *leaves: jnp.stack(leaves), *columns)
    lanes = jax.vmap(lambda workload: start_lane(config, params, workload, (), jax.random.key(0)))(workloads)
    mesh = jax.make_mesh((2,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
    done, intervals = run_to_end(config, policy, params, workloads, lanes, mesh=mesh, chunk=1, most_intervals=10_000)
    assert (intervals > 100).all()
    for lane, table in enumerate(tables):
        [alone] = simulate(fleet, table, predict(table, "oracle", seed=0), [policy])
        book = jax.tree.map(lambda leaf, lane=lane: np.asarray(leaf[lane]), done.cluster.engines.ledger.requests)
        instance = np.asarray(done.cluster.instance[lane])
        finish = book.last.step[instance, np.arange(60)] * fleet.dt + book.last.offset[instance, np.arange(60)]
        np.testing.assert_allclose(finish, alone.records.finish_s, atol=1e-5)


def test_the_view_does_not_change_with_the_hidden_truth() -> None:
    """True output lengths of running requests, and of those not yet arrived, leave no mark in what a router sees."""
    fleet = Fleet((V100,) * 2, ("chunked",) * 2)
    config, params = fleet.config(len(TABLE), records=False), fleet.params()
    # Nothing finishes within the 12 intervals that are compared: a finish is something that a router sees.
    short = TABLE.replace(output_tokens=np.maximum(TABLE.output_tokens, 40))
    longer = TABLE.replace(output_tokens=short.output_tokens + 500)
    views = []
    for table in (short, longer):
        # The prediction is the router's own and stays; only the truth changes.
        workload = to_device(table, PREDICTION, dt=fleet.dt)
        views.append(_views(config, params, workload, intervals=12))
    jax.tree.map(np.testing.assert_array_equal, *views)
    assert int(views[0].in_flight[-1].sum()) > 5


def _views(config, params, workload, *, intervals: int):
    from jaxroute.cluster import fleet as cluster
    from jaxroute.cluster.view import router_view

    def body(state, _):
        state, _ = cluster.step(config, params, workload, state, state.dispatched % 2)
        return state, router_view(config, params, workload, state)

    state = cluster.initial_state(config, params, workload)
    return jax.device_get(jax.jit(lambda s: jax.lax.scan(body, s, None, length=intervals)[1])(state))


def test_hand_made_views_have_the_fields_of_real_ones() -> None:
    fleet = Fleet((V100,) * 3, ("chunked",) * 3)
    config, params = fleet.config(len(TABLE), records=False), fleet.params()
    real = _views(config, params, to_device(TABLE, PREDICTION, dt=fleet.dt), intervals=1)
    made = view(3)
    for one, other in zip(jax.tree.leaves(real), jax.tree.leaves(made), strict=True):
        assert one.shape[1:] == other.shape
        assert one.dtype == other.dtype
