"""Derivatives through the simulation: of what clients feel, in every continuous parameter, both modes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import partial

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cluster import fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import make_params
from jaxroute.cluster.state import ClusterState
from jaxroute.gradients import RequestTimes, request_times
from jaxroute.profiles import COEFFICIENTS
from jaxroute.rollout import start_lane
from jaxroute.types import ClusterParams, Workload

LENGTH, STEPS, SHORTEST_MS = 4096, 3, 7.0
OUTPUTS = ("mean_e2e_s", "mean_ttft_s", "mean_tbt_s")


def gentle_case(seed: int, scheduler: str) -> cases.Case:
    """A random case whose engine steps are long enough for a few in each interval."""
    case = cases.random_case(seed, scheduler=scheduler)
    slower = [max(1.0, SHORTEST_MS / profile.shortest_step_ms) for profile in case.profiles]
    profiles = tuple(
        dataclasses.replace(p, coefficients_ms={name: value * by for name, value in p.coefficients_ms.items()})
        for p, by in zip(case.profiles, slower, strict=True)
    )
    return dataclasses.replace(case, profiles=profiles)


def config_of(case: cases.Case, *, fixed_steps: bool) -> ClusterConfig:
    return dataclasses.replace(case.config, fixed_steps=fixed_steps, max_steps_per_interval=STEPS)


def lane_of(case: cases.Case, config: ClusterConfig, params: ClusterParams, workload: Workload):
    pad = (0, cases.REQUESTS - len(case.table))
    decisions = tuple(jnp.asarray(np.pad(column, pad), jnp.int32) for column in (case.instance, case.not_before))
    return start_lane(config, params, workload, decisions, jax.random.key(0))


@partial(jax.jit, static_argnames=("config", "segment"))
def means(config, params, workload, lane, segment=None) -> tuple[jax.Array, RequestTimes]:
    times = request_times(config, cases.REPLAY, params, workload, lane, length=LENGTH, segment=segment)
    return jnp.stack([getattr(times, name) for name in OUTPUTS]), times


@partial(jax.jit, static_argnames=("config", "segment"))
def slopes(config, params, workload, lane, segment=None):
    """d means / d (params, workload), [3] in front of every leaf."""
    both = jax.jacrev(lambda p, w: means(config, p, w, lane, segment)[0], argnums=(0, 1), allow_int=True)
    return both(params, workload)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run of the plain simulator: its three means in float64, and the order of its events."""

    means: np.ndarray
    order: list[np.ndarray]
    preemptions: int
    dispatch_s: np.ndarray


@partial(jax.jit, static_argnames="config")
def _plain_runs(config, params, workload, instance, not_before):
    def run(params: ClusterParams, workload: Workload):
        def body(state: ClusterState, _: None):
            row = jnp.minimum(state.dispatched, instance.shape[0] - 1)
            action = jnp.where(state.now >= not_before[row], instance[row], cases.INSTANCES)
            return fleet.step(config, params, workload, state, action)

        return jax.lax.scan(body, fleet.initial_state(config, params, workload), None, length=LENGTH)

    return jax.vmap(run)(params, workload)


def outcomes(case: cases.Case, params: ClusterParams, workload: Workload) -> list[Outcome]:
    """The plain simulator (no `fixed_steps`) at a batch of parameters and workloads ([E] leaves)."""
    pad = (0, cases.REQUESTS - len(case.table))
    decisions = (jnp.asarray(np.pad(column, pad), jnp.int32) for column in (case.instance, case.not_before))
    state, log = jax.device_get(_plain_runs(config_of(case, fixed_steps=False), params, workload, *decisions))
    found = []
    for lane in range(log.duration.shape[0]):
        cluster, steps, arrival = jax.tree.map(lambda leaf, lane=lane: leaf[lane], (state, log, workload.arrival))
        rows = np.arange(len(case.table))
        ledger, here = cluster.engines.ledger, cluster.instance[: len(rows)]
        assert cluster.engines.finished.sum() == len(rows)
        first, last = (
            stamp.step[here, rows].astype(np.float64) * case.dt + stamp.offset[here, rows]
            for stamp in (ledger.requests.first, ledger.requests.last)
        )
        arrived = (
            np.asarray(arrival.step[: len(rows)]).astype(np.float64) * case.dt + np.asarray(arrival.offset)[: len(rows)]
        )
        gaps = case.table.output_tokens - 1
        tbt = ((last - first) / np.maximum(gaps, 1))[gaps > 0]
        order = []
        for instance in range(cases.INSTANCES):
            ran = steps.duration[:, instance] > 0
            columns = (steps.prefill_tokens, steps.decode_seqs, steps.preemptions)
            order += [column[:, instance][ran] for column in columns]
        dispatch_s = cluster.dispatch_step[: len(rows)].astype(np.float64) * case.dt
        mean = np.asarray([(last - arrived).mean(), (first - arrived).mean(), tbt.mean() if len(tbt) else 0.0])
        found.append(Outcome(mean, [*order, here], int(cluster.engines.preemptions.sum()), dispatch_s))
    return found


def same_order(one: Outcome, other: Outcome) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.order, other.order, strict=True))


def stacked(trees: list):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_a_fixed_number_of_steps_gives_the_same_times_as_the_plain_simulator(seed: int) -> None:
    case = gentle_case(seed, "chunked")
    params, workload = make_params(case.profiles, case.schedulers), case.workload
    config = config_of(case, fixed_steps=True)
    found, times = means(config, params, workload, lane_of(case, config, params, workload))
    [plain] = outcomes(case, stacked([params]), stacked([workload]))
    assert int(times.finished.sum()) == len(case.table)
    np.testing.assert_allclose(found, plain.means, rtol=1e-5)


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_a_fixed_number_of_steps_gives_the_same_state(seed: int) -> None:
    case = gentle_case(seed, "chunked")
    params, workload = make_params(case.profiles, case.schedulers), case.workload

    def run(fixed_steps: bool) -> ClusterState:
        config = dataclasses.replace(config_of(case, fixed_steps=fixed_steps), records=False)

        def body(state: ClusterState, _: None) -> tuple[ClusterState, None]:
            return fleet.step(config, params, workload, state, state.dispatched % cases.INSTANCES)[0], None

        return jax.lax.scan(body, fleet.initial_state(config, params, workload), None, length=150)[0]

    fixed, plain = jax.jit(lambda: run(True))(), jax.jit(lambda: run(False))()
    step = fixed.engines.step.replace(began=None)
    chex.assert_trees_all_equal(fixed.replace(engines=fixed.engines.replace(step=step)), plain)


@pytest.mark.parametrize("scheduler", cases.SCHEDULERS)
def test_gradients_equal_central_differences_of_the_plain_simulator(scheduler: str) -> None:
    """Every coefficient of every instance, wherever no event changes places; both with and without preemption."""
    checked = {True: 0, False: 0}
    for seed in range(100, 108):
        case = gentle_case(seed, scheduler)
        params, workload = make_params(case.profiles, case.schedulers), case.workload
        config = config_of(case, fixed_steps=True)
        by_params, by_workload = slopes(config, params, workload, lane_of(case, config, params, workload))
        for leaf in jax.tree.leaves((by_params, by_workload)):
            assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf).all()
        rng = np.random.default_rng(seed)
        moved, expected = [params], []
        for name in COEFFICIENTS:
            value = np.asarray(getattr(params.instances.step, name))
            slope = np.asarray(getattr(by_params.instances.step, name), np.float64)
            # Large enough for float32, small enough to leave most events where they are.
            share = np.clip(6e-5 / max(np.abs(slope[0] @ value), 1e-9), 2e-5, 1e-3)
            shift = (share * value * rng.uniform(0.5, 1.5, len(value)) * rng.choice([-1, 1], len(value))).astype("f4")
            ends = [value + sign * shift for sign in (1, -1)]
            moved += [_with(params, name, end) for end in ends]
            expected.append(slope @ (ends[0] - ends[1]))
        here, *around = outcomes(case, stacked(moved), stacked([workload] * len(moved)))
        for index, slope in enumerate(expected):
            up, down = around[2 * index : 2 * index + 2]
            change = up.means - down.means
            # Step times are float32 and rounded anew on each side: means differ by some 1e-8 s for that alone.
            large = np.abs(change) > 1e-5
            if same_order(up, here) and same_order(down, here):
                np.testing.assert_allclose(slope[large], change[large], rtol=1e-2, err_msg=f"{seed} {index}")
                checked[here.preemptions > 0] += int(large.sum())
    assert min(checked.values()) >= 12, checked


def test_the_derivative_in_an_arrival_is_that_of_a_router_that_acts_at_once() -> None:
    """An arrival that moves by whole intervals takes along all that runs until its engine is idle again."""
    checked, opened = 0, 0
    for seed in (1, 4, *range(21, 29)):
        case = gentle_case(seed, "chunked")
        params, workload = make_params(case.profiles, case.schedulers), case.workload
        config, count = config_of(case, fixed_steps=True), len(case.table)
        slope = slopes(config, params, workload, lane_of(case, config, params, workload))[1].arrival.offset[0, :count]
        free = np.diff(np.asarray(workload.visible_step[:count]), prepend=-9, append=2**30) >= 2
        free = np.flatnonzero(free[:-1] & free[1:] & (case.not_before == 0) & (case.table.arrival_s > 0.1))[:8]
        if len(free) == 0:
            continue
        moved = [workload] + [_later(workload, row, by) for row in free for by in (1, -1)]
        here, *around = outcomes(case, stacked([params] * len(moved)), stacked(moved))
        for index, row in enumerate(free):
            up, down = around[2 * index : 2 * index + 2]
            # An engine that is idle on one side and not on the other keeps its order, but has a kink in between.
            kink = abs(up.means[0] - 2 * here.means[0] + down.means[0]) > 1e-6
            if same_order(up, here) and same_order(down, here) and not kink:
                difference = (up.means[0] - down.means[0]) / (2 * case.dt)
                assert slope[row] == pytest.approx(difference, rel=1e-2, abs=1e-4)
                checked += 1
                opened += bool(slope[row] > -0.5 / count)
    assert checked >= 10
    assert opened >= 3


@pytest.mark.parametrize("seed", [100, 105])
def test_forward_mode_and_checkpointed_reverse_mode_agree_with_reverse_mode(seed: int) -> None:
    case = gentle_case(seed, "chunked")
    params, workload = make_params(case.profiles, case.schedulers), case.workload
    config = config_of(case, fixed_steps=True)
    lane = lane_of(case, config, params, workload)
    reverse = slopes(config, params, workload, lane)[0].instances.step
    again = slopes(config, params, workload, lane, segment=256)[0].instances.step
    chex.assert_trees_all_close(again, reverse, rtol=1e-4)

    def of_step(step):
        return means(config, params.replace(instances=params.instances.replace(step=step)), workload, lane)[0]

    step = params.instances.step
    tangent = jax.tree.map(lambda leaf: 0.01 * leaf, step)
    forward = jax.jit(lambda s, t: jax.jvp(of_step, (s,), (t,))[1])(step, tangent)
    total = sum(
        np.asarray(r) @ np.asarray(t) for r, t in zip(jax.tree.leaves(reverse), jax.tree.leaves(tangent), strict=True)
    )
    np.testing.assert_allclose(forward, total, rtol=1e-4)


def test_the_anchored_derivative_in_all_coefficients_together_is_the_time_since_dispatch() -> None:
    """A fleet that is slower by 1 % is, with every request at its place in its step, slower by 1 %."""
    checked = 0
    for seed in (100, 105, 2):
        case = gentle_case(seed, "chunked")
        params, workload = make_params(case.profiles, case.schedulers), case.workload
        config = config_of(case, fixed_steps=True)
        lane = lane_of(case, config, params, workload)

        @jax.jit
        def latencies(step, anchored_config=config, params=params, workload=workload, lane=lane):
            own = params.replace(instances=params.instances.replace(step=step))
            return request_times(anchored_config, cases.REPLAY, own, workload, lane, length=LENGTH, anchored=True).e2e_s

        step = params.instances.step
        found, slope = jax.jvp(latencies, (step,), (step,))
        [plain] = outcomes(case, stacked([params]), stacked([workload]))
        dispatched = plain.dispatch_s - case.table.arrival_s
        count = len(case.table)
        np.testing.assert_allclose(slope[:count], found[:count] - dispatched, rtol=1e-3, atol=1e-5)
        checked += count
    assert checked > 40


def test_a_step_that_is_as_long_as_an_interval_keeps_its_derivative() -> None:
    """Its end falls on the border, where a maximum of 0 and the offset would halve the derivative."""
    case = cases.random_case(1)
    profile = dataclasses.replace(
        case.profiles[0],
        coefficients_ms=dict.fromkeys(COEFFICIENTS, 0.0) | {"W": 20.0},
        max_num_seqs=12,
        kv_blocks=4000,
    )
    case = dataclasses.replace(case, profiles=(profile,) * cases.INSTANCES, schedulers=("chunked",) * cases.INSTANCES)
    params, workload = make_params(case.profiles, case.schedulers), case.workload
    config = config_of(case, fixed_steps=True)
    slope = slopes(config, params, workload, lane_of(case, config, params, workload))[0].instances.step.W
    [plain] = outcomes(case, stacked([params]), stacked([workload]))
    # All of TBT is steps of W.
    assert plain.means[2] == pytest.approx(0.02, rel=1e-5)
    assert float(slope[2].sum()) == pytest.approx(1.0, rel=1e-4)


BIG_RUN = """
import json, resource, sys, time
import jax
from jaxroute.gradients import differentiable_run
from jaxroute.policies import heuristic
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

table = five_task(2000, rate=10.0, seed=0)
servers = Fleet((load_profile("v100-32gb-llama2-7b"),) * 4, ("chunked",) * 4)
segment = int(sys.argv[1]) or None
policy = heuristic("round-robin")
times, params, workload = differentiable_run(servers, table, predict(table, "oracle", seed=0), policy, segment=segment)
value = jax.jit(lambda p: times(p, workload).mean_e2e_s)
gradient = jax.jit(jax.grad(lambda p: times(p, workload).mean_e2e_s, allow_int=True))

def cpu_s(run):
    jax.block_until_ready(run(params))
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        jax.block_until_ready(run(params))
        best = min(best, time.process_time() - start)
    return best

forward, backward = cpu_s(value), cpu_s(gradient)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"forward_s": forward, "gradient_s": backward, "peak_gib": peak,
                  "intervals": times.length, "finished": int(jax.jit(times)(params, workload).finished.sum())}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("segment", [0, 512])
def test_two_thousand_requests_over_ten_thousand_intervals_take_little_memory_and_time(segment: int) -> None:
    run = subprocess.run([sys.executable, "-c", BIG_RUN, str(segment)], capture_output=True, text=True, check=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    print(f"segment {segment}: {measured}")
    assert measured["finished"] == 2000
    assert measured["intervals"] >= 10_000
    assert measured["peak_gib"] < 4
    assert measured["gradient_s"] <= 6 * measured["forward_s"], measured


def _with(params: ClusterParams, name: str, value: np.ndarray) -> ClusterParams:
    step = params.instances.step.replace(**{name: jnp.asarray(value)})
    return params.replace(instances=params.instances.replace(step=step))


def _later(workload: Workload, row: int, intervals: int) -> Workload:
    arrival = workload.arrival.replace(step=workload.arrival.step.at[row].add(intervals))
    return workload.replace(arrival=arrival, visible_step=workload.visible_step.at[row].add(intervals))
