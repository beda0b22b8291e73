"""What must hold in every state that a run goes through."""

from __future__ import annotations

from collections.abc import Callable

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cluster import fleet
from jaxroute.cluster.params import make_params
from jaxroute.cluster.state import ClusterState
from jaxroute.cluster.view import router_view
from jaxroute.types import NEVER

SEEDS = range(10)


def states_of(case: cases.Case, most: int = 4000) -> list[ClusterState]:
    """The state after every interval, on the host, until all requests have finished."""
    config, params, workload = case.config, make_params(case.profiles, case.schedulers, dt=case.dt), case.workload
    instance = jnp.asarray(np.resize(case.instance, cases.REQUESTS), jnp.int32)

    @jax.jit
    def segment(params, workload, instance, state):
        def body(state, _):
            state, _ = fleet.step(config, params, workload, state, instance[state.dispatched])
            return state, state

        return jax.lax.scan(body, state, None, length=200)

    state, states = fleet.initial_state(config, params, workload), []
    while len(states) < most and int(state.engines.finished.sum()) < len(case.table):
        state, rows = segment(params, workload, instance, state)
        rows = jax.device_get(rows)
        states += [jax.tree.map(lambda leaf, row=row: leaf[row], rows) for row in range(200)]
    assert int(state.engines.finished.sum()) == len(case.table), "not every request finished"
    return states


@pytest.fixture(scope="module", params=SEEDS)
def run(request: pytest.FixtureRequest) -> tuple[cases.Case, list[ClusterState]]:
    case = cases.random_case(request.param)
    if request.param % 2:
        case = cases.chunk_small(case, 30)
    return case, states_of(case)


def test_requests_are_conserved(run) -> None:
    _, states = run
    for state in states:
        engines = state.engines
        here = engines.running + engines.queue.count + engines.finished
        assert int(here.sum()) == int(state.dispatched) <= int(state.arrived)


def test_blocks_never_exceed_capacity_and_are_those_of_the_running_requests(run) -> None:
    case, states = run
    for state in states:
        engines = state.engines
        for i, profile in enumerate(case.profiles):
            used = int(engines.used_blocks[i])
            assert used <= profile.kv_blocks
            finish_at, order = engines.slots.finish_at[i], engines.slots.order[i]
            kv = engines.slots.kv_base[i] + engines.decode_count[i]
            blocks = sum(-(-int(tokens) // profile.block_size) for tokens in kv[(order >= 0) & (finish_at < NEVER)])
            if engines.partial.slot[i] >= 0:
                blocks += -(-int(engines.partial.kv[i]) // profile.block_size)
            assert used == blocks


def test_running_never_exceeds_max_num_seqs_and_each_has_a_slot_of_its_own(run) -> None:
    case, states = run
    for state in states:
        for i, profile in enumerate(case.profiles):
            slots = state.engines.slots
            running = int(state.engines.running[i])
            assert running <= profile.max_num_seqs
            assert int((slots.order[i] >= 0).sum()) == running
            free = set(slots.free[i][running:].tolist())
            assert free == set(np.flatnonzero(slots.order[i] < 0).tolist())


def test_the_running_sums_are_what_they_stand_for(run) -> None:
    case, states = run
    for state in states:
        engines = state.engines
        for i, profile in enumerate(case.profiles):
            decoding = (engines.slots.order[i] >= 0) & (engines.slots.finish_at[i] < NEVER)
            kv_base = engines.slots.kv_base[i][decoding]
            assert int(engines.context[i]) == int((kv_base + engines.decode_count[i] + 1).sum())
            expected = np.bincount(kv_base % profile.block_size, minlength=cases.BLOCK_SIZE)
            assert engines.phases[i].tolist() == expected.tolist()
            assert int(engines.next_finish[i]) == int(engines.slots.finish_at[i].min())


def test_time_and_progress_never_go_back(run) -> None:
    case, states = run
    ends = np.stack([s.engines.step.end.step * case.dt + s.engines.step.end.offset for s in states])
    assert (np.diff(ends, axis=0) >= -1e-6).all()
    for name in ("finished", "admissions", "preemptions", "decode_count"):
        assert (np.diff(np.stack([getattr(s.engines, name) for s in states]), axis=0) >= 0).all(), name
    offsets = np.stack([s.engines.step.end.offset for s in states])
    assert (offsets >= 0).all()
    assert (offsets < np.float32(case.dt) + 1e-9).all()


def test_tokens_in_flight_are_those_of_the_requests_that_are_there(run) -> None:
    case, states = run
    output = np.asarray(case.table.output_tokens)
    for state in states:
        if int(state.dispatched) == len(case.table) and int(state.engines.finished.sum()) == len(case.table):
            assert state.engines.in_flight_tokens.tolist() == [0] * cases.INSTANCES
            assert state.engines.awaiting_first.tolist() == [0] * cases.INSTANCES
            assert state.engines.awaiting_prompt_tokens.tolist() == [0] * cases.INSTANCES
            return
        assert (state.engines.in_flight_tokens >= 0).all()
        assert (state.engines.awaiting_first <= state.engines.running + state.engines.queue.count).all()
        most = int(case.table.prompt_tokens.sum() + output.sum())
        assert int(state.engines.in_flight_tokens.sum()) <= most
    pytest.fail("the run did not end")


def test_fcfs_order_holds_at_each_instance() -> None:
    for seed in SEEDS:
        case = cases.random_case(seed, "fcfs")
        _, records, _ = cases.run_jax(case)
        for i in range(cases.INSTANCES):
            start = records.start_s[records.instance == i]
            assert (np.diff(start) >= -1e-6).all(), "a later request was first admitted before an earlier one"


def test_every_output_token_is_accounted_for() -> None:
    """Decodes plus completed prefills give each request its output; preemptions compute again what they dropped."""
    for seed in SEEDS:
        case = cases.random_case(seed, scheduler="chunked")
        _, records, timeline = cases.run_jax(case)
        table = case.table
        computed = int(timeline.step_prefill_tokens.sum() + timeline.step_decode_seqs.sum())
        needed = int((table.prompt_tokens + table.output_tokens - 1).sum())
        assert computed == needed + int(records.recomputed_tokens.sum())


def test_vmap_equals_a_python_loop_and_jit_equals_no_jit() -> None:
    case = cases.chunk_small(cases.random_case(3), 40)
    config, params, workload = case.config, make_params(case.profiles, case.schedulers), case.workload
    state = fleet.initial_state(config, params, workload)
    actions = jnp.asarray([[0, 1], [1, 2], [2, 0], [3, 1], [0, 0], [1, 2]], jnp.int32)

    def step(state: ClusterState, action: jax.Array) -> ClusterState:
        return fleet.step(config, params, workload, state, action)[0]

    def run(
        step: Callable[[ClusterState, jax.Array], ClusterState], state: ClusterState, actions: jax.Array
    ) -> ClusterState:
        for action in actions:
            state = step(state, action)
        return state

    jitted = jax.jit(step)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
    together = run(jax.jit(jax.vmap(step)), both, actions)
    alone = [run(jitted, state, actions[:, lane]) for lane in range(2)]
    for lane in range(2):
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, lane=lane: leaf[lane], together), alone[lane])
    with jax.disable_jit():
        plain = run(step, state, actions[:, 0])
    chex.assert_trees_all_close(plain, alone[0], atol=1e-6)


def test_the_step_is_traced_once_and_moves_nothing_between_host_and_device() -> None:
    case = cases.random_case(4)
    config, params, workload = case.config, make_params(case.profiles, case.schedulers), case.workload
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, workload, state, action):
        state, _ = fleet.step(config, params, workload, state, action)
        return state, router_view(config, params, workload, state)

    state = fleet.initial_state(config, params, workload)
    actions = [jnp.int32(action) for action in range(4)]
    state, _ = step(params, workload, state, actions[0])
    with jax.transfer_guard("disallow"):
        for action in actions:
            state, view = step(params, workload, state, action)
    assert int(view.now) == 5


def test_profiles_and_workloads_can_be_vmapped() -> None:
    """Every parameter is a traced leaf: one program runs different profiles, schedulers and workloads side by side."""
    both = [cases.random_case(seed) for seed in (5, 6)]
    config = both[0].config
    params = [make_params(case.profiles, case.schedulers) for case in both]
    workloads = [case.workload for case in both]

    def run(params, workload):
        def body(state, _):
            return fleet.step(config, params, workload, state, state.dispatched % cases.INSTANCES)[0], None

        state = fleet.initial_state(config, params, workload)
        return jax.lax.scan(body, state, None, length=300)[0]

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *zip(params, workloads, strict=True))
    together = jax.jit(jax.vmap(run))(*stacked)
    for lane in range(2):
        alone = jax.jit(run)(params[lane], workloads[lane])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, lane=lane: leaf[lane], together), alone, atol=1e-5)
