"""What the latency of a fleet depends on: elasticities, by simulation with small changes and by derivatives.

An elasticity is the change of a latency in % for a change of a parameter by 1 %. By *difference* it comes from whole
simulations a little to both sides with the same requests and random numbers, in which the policy decides anew and
events change places. By *derivative* it comes from one simulation: pathwise (the order of events held) or anchored (see
`jaxroute.cluster.replay`). Where they differ, the difference is what counts: derivatives are blind to the rest.

Axis letters as in `jaxroute.types`; V variants of a fleet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute import metrics
from jaxroute.calibrate.log import RequestLog
from jaxroute.calibrate.model import ServerModel
from jaxroute.candidates import Candidate, by_program
from jaxroute.cluster import fleet as cluster_fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import make_config, make_params
from jaxroute.paired import Interval, mean_interval
from jaxroute.policies.protocol import Policy
from jaxroute.profiles import COEFFICIENTS, StepProfile
from jaxroute.progress import VoidRunError, check_progress, interval_limit
from jaxroute.results import RunResult
from jaxroute.rollout import Lane, interval, start_lane
from jaxroute.simulate import Fleet, records_of
from jaxroute.types import ClusterParams, Workload
from jaxroute.workload.device import stack, to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

QUANTITIES = ("e2e_mean", "ttft_mean", "tbt_mean", "e2e_p99")

GROUPS = {
    "memory bandwidth": ("W", "d", "e"),
    "compute": ("g", "f", "x"),
    "step overhead": ("h", "u", "v"),
}
"""Coefficients that a property of the hardware stands behind, as far as the form of the step time tells them apart: W
is the reading of the weights, d of the KV cache, e of what else a sequence has; g, f and x are multiplications; h, u
and v are what a step costs besides. A change by 1 % of the first two is one of speed: their coefficients shrink."""

KV_SIZE, MAX_SEQS, RATE = "KV size", "max_num_seqs", "arrival rate"

TAIL = (0.985, 0.995)
"""Shares of the requests between which the derivative of the 99th percentile is averaged."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """Something that is changed a little.

    Attributes:
      name: of it.
      members: coefficients that it consists of; none where it is no time.
      faster: whether more of it makes the members smaller.
      step: relative change to both sides.
    """

    name: str
    members: tuple[str, ...]
    faster: bool
    step: float


@dataclasses.dataclass(frozen=True)
class Elasticity:
    """Of all `QUANTITIES`, in % for 1 %, with intervals over seeds.

    Attributes:
      parameter: in which.
      difference: by simulations to both sides.
      anchored, pathwise: by derivatives; None where there is none.
    """

    parameter: Parameter
    difference: dict[str, Interval]
    anchored: dict[str, Interval] | None
    pathwise: dict[str, Interval] | None


def parameters(step: float, size_step: float) -> list[Parameter]:
    """All that are looked at.

    Args:
      step: relative change of times and of the arrival rate.
      size_step: of sizes, which are whole numbers.
    """
    groups = [Parameter(name, members, name != "step overhead", step) for name, members in GROUPS.items()]
    singles = [Parameter(name, (name,), False, step) for name in COEFFICIENTS]
    sizes = [Parameter(name, (), False, size_step) for name in (KV_SIZE, MAX_SEQS)]
    return [*groups, *sizes, Parameter(RATE, (), False, step), *singles]


def sensitivities(
    fleet: Fleet,
    tables: Sequence[RequestTable],
    seeds: Sequence[int],
    candidate: Candidate,
    *,
    prediction: str,
    step: float,
    size_step: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Interval], list[Elasticity]]:
    """The means of all quantities in seconds, and their elasticities.

    Args:
      fleet: the servers.
      tables, seeds: the requests of each seed, and the seed of the policy's random choices.
      candidate: the policy.
      prediction: what the router is told of output lengths, see `predict`.
      step, size_step: see `parameters`.
      progress: called with the seeds done and all of them.

    Raises:
      InputError: a request that cannot run, or a run that the simulator cannot represent or that does not end.
    """
    [(fleet, _)] = by_program(fleet, [candidate])
    asked = parameters(step, size_step)
    variants = [_changed(fleet, each, sign) for each in asked for sign in (1, -1)]
    limit = interval_limit(tables, [p for v in variants for p in v.profiles], fleet.dt)
    values, anchored, pathwise = [], [], []
    for number, (table, seed) in enumerate(zip(tables, seeds, strict=True)):
        rates = [_rate(each, sign) for each in asked for sign in (1, -1)]
        runs = _run_variants([fleet, *variants], [1.0, *rates], table, seed, candidate.policy, prediction, limit)
        values.append(np.asarray([quantities(run) for run in runs]))
        slopes = derivatives(fleet, runs[0])
        anchored.append(slopes[0])
        pathwise.append(slopes[1])
        if progress is not None:
            progress(number + 1, len(tables))
    base = np.asarray(values)[:, 0]
    means = {name: mean_interval(base[:, place]) for place, name in enumerate(QUANTITIES)}
    return means, [
        _elasticity(
            each, np.asarray(values)[:, 1 + 2 * place : 3 + 2 * place], np.asarray(anchored), np.asarray(pathwise)
        )
        for place, each in enumerate(asked)
    ]


def quantities(result: RunResult) -> list[float]:
    """`QUANTITIES` of a run, seconds."""
    summary = metrics.summarise(result)
    return [summary.e2e_mean_s, summary.ttft_mean_s, summary.tbt_mean_s, summary.e2e_p99_s]


def derivatives(fleet: Fleet, result: RunResult) -> tuple[np.ndarray, np.ndarray]:
    """Elasticities of `QUANTITIES` in each coefficient ([4, 9]), anchored and pathwise, with the decisions of a run."""
    log = _log_of(result)
    model = ServerModel.create(log, fleet.profiles, fleet.schedulers)
    coefficients = [[profile.coefficients_ms[name] / 1e3 for name in COEFFICIENTS] for profile in fleet.profiles]
    run = model(np.asarray([coefficients]))
    frontend = result.frontend_s[log.server]
    gaps = np.maximum(log.output_tokens - 1, 1)
    several = log.output_tokens > 1
    found = []
    for drift in (np.zeros_like(run.drift_slope[0]), run.drift_slope[0]):
        ttft_slope, e2e_slope = run.ttft_slope[0] + drift, run.e2e_slope[0] + drift
        ttft, e2e = run.ttft_s[0] + frontend, run.e2e_s[0] + frontend
        tbt, tbt_slope = ((e2e - ttft) / gaps)[several], ((e2e_slope - ttft_slope) / gaps[:, None])[several]
        low, high = np.quantile(e2e, TAIL)
        tail = (e2e >= low) & (e2e <= high)
        pairs = ((e2e, e2e_slope), (ttft, ttft_slope), (tbt, tbt_slope), (e2e[tail], e2e_slope[tail]))
        found.append(np.stack([slope.mean(0) / value.mean() for value, slope in pairs]))
    return found[0], found[1]


def _elasticity(parameter: Parameter, values: np.ndarray, anchored: np.ndarray, pathwise: np.ndarray) -> Elasticity:
    """Of one parameter.

    Args:
      parameter: it.
      values: [seeds, 2, 4] quantities on both sides.
      anchored, pathwise: [seeds, 4, 9] derivatives.
    """
    width = np.log1p(parameter.step) - np.log1p(-parameter.step)
    by_difference = (np.log(values[:, 0]) - np.log(values[:, 1])) / width
    sign = -1 if parameter.faster else 1
    own = [COEFFICIENTS.index(name) for name in parameter.members]

    def intervals(columns: np.ndarray) -> dict[str, Interval]:
        return {name: mean_interval(columns[:, place]) for place, name in enumerate(QUANTITIES)}

    if not own:
        return Elasticity(parameter, intervals(by_difference), None, None)
    return Elasticity(
        parameter,
        intervals(by_difference),
        intervals(sign * anchored[:, :, own].sum(-1)),
        intervals(sign * pathwise[:, :, own].sum(-1)),
    )


def _changed(fleet: Fleet, parameter: Parameter, sign: int) -> Fleet:
    by = 1 + sign * parameter.step
    return dataclasses.replace(fleet, profiles=tuple(_changed_profile(p, parameter, by) for p in fleet.profiles))


def _changed_profile(profile: StepProfile, parameter: Parameter, by: float) -> StepProfile:
    if parameter.members:
        factor = 1 / by if parameter.faster else by
        times = {k: v * factor if k in parameter.members else v for k, v in profile.coefficients_ms.items()}
        return dataclasses.replace(profile, coefficients_ms=times)
    if parameter.name == KV_SIZE:
        return dataclasses.replace(profile, kv_blocks=max(1, round(profile.kv_blocks * by)))
    if parameter.name == MAX_SEQS:
        seqs = min(max(1, round(profile.max_num_seqs * by)), profile.max_num_batched_tokens)
        return dataclasses.replace(profile, max_num_seqs=seqs)
    return profile


def _rate(parameter: Parameter, sign: int) -> float:
    return 1 + sign * parameter.step if parameter.name == RATE else 1.0


def _run_variants(
    fleets: Sequence[Fleet],
    rates: Sequence[float],
    table: RequestTable,
    seed: int,
    policy: Policy,
    prediction: str,
    most_intervals: int,
) -> list[RunResult]:
    """The same requests on V fleets of one shape, `rates` times as fast."""
    first = fleets[0]
    tables = [table.replace(arrival_s=table.arrival_s / rate) for rate in rates]
    for fleet in fleets:
        fleet.check(table)
    config = make_config(
        [profile for fleet in fleets for profile in fleet.profiles],
        queue_capacity=len(table),
        dt=first.dt,
        batching=first.batching,
        router_order=first.router_order,
        records=True,
    )
    config = dataclasses.replace(config, buckets=first.buckets)
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves),
        *(make_params(f.profiles, f.schedulers, dt=f.dt, scrape_s=f.scrape_s) for f in fleets),
    )
    told = predict(table, prediction, seed=seed)
    workloads = stack(
        [to_device(each, told, dt=first.dt, ageing=first.ageing, spf_edges=first.spf_edges) for each in tables]
    )
    states = policy.initial_state(len(first.profiles))
    clusters = jax.device_get(
        _run_lanes(config, policy, params, workloads, states, jax.random.key(seed), most_intervals).cluster
    )
    results = []
    for lane, (fleet, own) in enumerate(zip(fleets, tables, strict=True)):
        one = jax.tree.map(lambda leaf, lane=lane: leaf[lane : lane + 1], clusters)
        check_progress(one, [policy.name], own, config, first.dt)
        if int(one.engines.finished.sum()) < len(own):
            raise VoidRunError(f"policy {policy.name} on {own.name}: did not come to an end; lower --load")
        records = records_of(jax.tree.map(lambda leaf: leaf[0], one), first.dt)
        results.append(RunResult(policy.name, own, records, fleet.frontend_s, first.dt))
    return results


@partial(jax.jit, static_argnames=("config", "policy", "most_intervals"))
def _run_lanes(
    config: ClusterConfig,
    policy: Policy,
    params: ClusterParams,
    workloads: Workload,
    states: object,
    key: jax.Array,
    most_intervals: int,
) -> Lane:
    """V lanes to their ends, each with its own fleet and workload, all with the same random numbers."""

    def unfinished(carry: tuple[Lane, jax.Array]) -> jax.Array:
        lanes, count = carry
        done = jax.vmap(cluster_fleet.all_finished)(workloads, lanes.cluster)
        return ~jnp.all(done) & (count < most_intervals)

    def body(carry: tuple[Lane, jax.Array]) -> tuple[Lane, jax.Array]:
        lanes, count = carry
        return jax.vmap(partial(interval, config, policy))(params, workloads, lanes)[0], count + 1

    start = jax.vmap(lambda own, requests: start_lane(config, own, requests, states, key))(params, workloads)
    return jax.lax.while_loop(unfinished, body, (start, jnp.int32(0)))[0]


def _log_of(result: RunResult) -> RequestLog:
    """What a run would have logged; a derivative needs the decisions, not the times."""
    table, records = result.table, result.records
    order = np.argsort(records.dispatch_s, kind="stable")
    return RequestLog(
        name=table.name,
        servers=tuple(map(str, range(result.instances))),
        server=records.instance[order].astype(np.int64),
        dispatch_s=records.dispatch_s[order],
        waited_s=(records.dispatch_s - table.arrival_s)[order],
        prompt_tokens=table.prompt_tokens[order],
        output_tokens=table.output_tokens[order],
        ttft_s=(records.first_token_s - table.arrival_s)[order],
        e2e_s=(records.finish_s - table.arrival_s)[order],
        counted=np.ones(len(table), bool),
    )
