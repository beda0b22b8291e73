"""Evaluates policies side by side: every policy sees the same requests of each seed, in one compiled program.

Axis letters: E lanes (policies x seeds), N requests, I instances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.candidates import Candidate, by_program
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.state import ClusterState
from jaxroute.cluster.view import router_view
from jaxroute.devices import lane_mesh, lane_sharding
from jaxroute.errors import InputError
from jaxroute.metrics import Summary, summarise
from jaxroute.policies.bank import PolicyBank
from jaxroute.policies.in_turn import in_turn
from jaxroute.progress import VoidRunError, check_progress, interval_limit
from jaxroute.results import RunResult
from jaxroute.rollout import Lane, run_to_end, start_lane
from jaxroute.simulate import Fleet, Progress, records_of
from jaxroute.types import ClusterParams, Workload
from jaxroute.workload.device import stack, to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

FIRST_SEED = 1_000_000
"""Seeds from here on are for evaluation, those below for training."""

LANES_ON_CPU, LANES_ELSEWHERE = 32, 1024
"""Most lanes that one device runs side by side: few enough for a core's cache, enough to fill an accelerator."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid that is evaluated.

    Attributes:
      workload: its name.
      fleet: the servers.
      load: rate over the fleet's capacity for the workload.
      rate_per_s: mean requests per second.
      seeds: of the tables and of the policies' random choices.
      tables: the requests of each seed.
      prediction: what the router is told of output lengths, see `predict`.
    """

    workload: str
    fleet: Fleet
    load: float
    rate_per_s: float
    seeds: tuple[int, ...]
    tables: tuple[RequestTable, ...]
    prediction: str = "oracle"

    @property
    def size(self) -> int:
        """N, of the longest table."""
        return max(map(len, self.tables))


@dataclasses.dataclass(frozen=True)
class Row:
    """One run in numbers, a row of `evaluation.csv` whose columns are these fields; see `Summary`."""

    policy: str
    workload: str
    profile: str
    scheduler: str
    instances: int
    load: float
    seed: int
    e2e_mean_s: float
    e2e_p99_s: float
    ttft_mean_s: float
    ttft_p99_s: float
    tbt_mean_s: float
    makespan_s: float
    router_wait_mean_s: float
    preemptions: int
    rate_per_s: float
    recomputed_tokens: int
    tbt_p99_s: float
    routers: int = 1


def evaluate(
    cells: Sequence[Cell], candidates: Sequence[Candidate], *, progress: Progress | None = None
) -> list[list[Row]]:
    """Runs every policy over every seed of every cell.

    Args:
      cells: those of one size and fleet shape share a compiled program.
      candidates: the policies.
      progress: called now and then with the runs done and all of them.

    Returns:
      The rows of each cell, policy by policy and seed by seed.

    Raises:
      InputError: a policy that breaks the protocol, a request that cannot run, or a run that the simulator cannot
        represent or that does not end; nothing is dropped.
    """
    total = sum(len(cell.seeds) for cell in cells) * len(candidates)
    limit = max(interval_limit(cell.tables, cell.fleet.profiles, cell.fleet.dt) for cell in cells)
    done = 0

    def advance(runs: int) -> None:
        nonlocal done
        done += runs
        if progress is not None:
            progress(done, total)

    return [evaluate_cell(cell, candidates, most_intervals=limit, advance=advance) for cell in cells]


def evaluate_cell(
    cell: Cell,
    candidates: Sequence[Candidate],
    *,
    most_intervals: int,
    advance: Callable[[int], None] = lambda runs: None,
) -> list[Row]:
    """The rows of one cell, policy by policy and seed by seed; see `evaluate`.

    Args:
      cell: what is run.
      candidates: the policies.
      most_intervals: where a run that does not end is cut off.
      advance: called with the number of runs that have just been done.
    """
    rows: dict[str, list[Row]] = {}
    for number, result in run_cell(cell, candidates, most_intervals=most_intervals, advance=advance):
        rows.setdefault(result.policy, []).append(row_of(cell, summarise(result), cell.seeds[number]))
    return [row for candidate in candidates for row in rows[candidate.name]]


def run_cell(
    cell: Cell,
    candidates: Sequence[Candidate],
    *,
    most_intervals: int,
    tables_of: Mapping[str, Sequence[int]] | None = None,
    advance: Callable[[int], None] = lambda runs: None,
) -> Iterator[tuple[int, RunResult]]:
    """Runs policies over the tables of a cell.

    Args:
      cell: what is run.
      candidates: the policies.
      most_intervals: where a run that does not end is cut off.
      tables_of: by policy, the numbers of the tables that it runs; by default all of them.
      advance: called with the number of runs that have just been done.

    Yields:
      The number of the table and the run, of one policy in the order of its tables.

    Raises:
      InputError: see `evaluate`.
    """
    for table in cell.tables:
        cell.fleet.check(table)
    if tables_of is None:
        tables_of = {candidate.name: range(len(cell.tables)) for candidate in candidates}
    for fleet, group in by_program(cell.fleet, candidates):
        # Policy by policy, since runs of one policy take about as long as each other.
        runs = [(policy, number) for policy, each in enumerate(group) for number in tables_of[each.name]]
        yield from _runs(cell, fleet, group, runs, most_intervals, advance)


def _runs(
    cell: Cell,
    fleet: Fleet,
    group: Sequence[Candidate],
    runs: Sequence[tuple[int, int]],
    most_intervals: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, RunResult]]:
    """Runs (policy, table) pairs of a group of policies that share a program."""
    config, params = fleet.config(cell.size, records=True), fleet.params()
    columns = [
        to_device(
            table,
            predict(table, cell.prediction, seed=seed),
            dt=fleet.dt,
            size=cell.size,
            ageing=fleet.ageing,
            spf_edges=fleet.spf_edges,
        )
        for table, seed in zip(cell.tables, cell.seeds, strict=True)
    ]
    for candidate in group:
        _check_policy(candidate, config, params, columns[0])
    bank = PolicyBank(tuple(in_turn(candidate.policy, fleet.routers) for candidate in group))
    workloads = stack(columns)
    mesh, chunk = lane_layout(len(runs))
    batch = mesh.size * chunk
    for start in range(0, len(runs), batch):
        shown = list(runs[start : start + batch])
        policy, seed = np.asarray(shown + [shown[-1]] * (batch - len(shown)), np.int32).T
        keys = jax.vmap(jax.random.key)(jnp.asarray(np.asarray(cell.seeds, np.uint32)[seed]))
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], workloads)
        lanes = _start_lanes(config, bank, params, own, jnp.asarray(policy), keys)
        own, lanes = jax.device_put((own, lanes), lane_sharding(mesh))
        ended, _ = run_to_end(config, bank, params, own, lanes, mesh=mesh, chunk=chunk, most_intervals=most_intervals)
        clusters = jax.device_get(ended.cluster)
        for lane, (policy_at, seed_at) in enumerate(shown):
            name, table = group[policy_at].name, cell.tables[seed_at]
            cluster = jax.tree.map(lambda leaf, lane=lane: leaf[lane : lane + 1], clusters)
            check_progress(cluster, [name], table, config, fleet.dt)
            _check_ended(cluster, name, cell, table, most_intervals)
            records = records_of(jax.tree.map(lambda leaf: leaf[0], cluster), fleet.dt)
            served = {field: values[: len(table)] for field, values in vars(records).items()}
            records = dataclasses.replace(records, **served)
            yield seed_at, RunResult(name, table, records, fleet.frontend_s, fleet.dt)
        advance(len(shown))


@partial(jax.jit, static_argnames=("config", "bank"))
def _start_lanes(
    config: ClusterConfig,
    bank: PolicyBank,
    params: ClusterParams,
    workloads: Workload,
    policies: jax.Array,
    keys: jax.Array,
) -> Lane:
    """Lanes at interval 0, [E] leaves: workload, index of the policy and key of each."""
    _, states = bank.initial_state(params.instances.kv_blocks.shape[0])

    def start(workload: Workload, index: jax.Array, key: jax.Array) -> Lane:
        return start_lane(config, params, workload, (index, states), key)

    return jax.vmap(start)(workloads, policies, keys)


def lane_layout(runs: int) -> tuple[jax.sharding.Mesh, int]:
    """The devices, and the lanes that each runs at a time: as even as can be, the last batch padded by a few."""
    devices = min(len(jax.devices()), runs)
    most = LANES_ON_CPU if jax.default_backend() == "cpu" else LANES_ELSEWHERE
    batches = -(-runs // (devices * most))
    return lane_mesh(devices), -(-runs // (devices * batches))


def _check_policy(candidate: Candidate, config: ClusterConfig, params: ClusterParams, workload: Workload) -> None:
    """Traces the policy once, so that what is wrong with it is said in its name.

    Raises:
      InputError: it fails, its action is not one int32, or its state changes its form.
    """
    instances = params.instances.kv_blocks.shape[0]

    def decide(workload: Workload, key: jax.Array) -> tuple[object, object, object]:
        state = candidate.policy.initial_state(instances)
        lane = start_lane(config, params, workload, state, key)
        action, after = candidate.policy.act(state, router_view(config, params, workload, lane.cluster), key)
        return action, jax.tree.map(jnp.asarray, state), jax.tree.map(jnp.asarray, after)

    # Whatever the user's own code raises is bad input here.
    try:
        action, before, after = jax.eval_shape(decide, workload, jax.random.key(0))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"policy {candidate.name}: fails when traced ({type(error).__name__}: {reason})") from error
    if getattr(action, "shape", None) != () or getattr(action, "dtype", None) != jnp.int32:
        raise InputError(f"policy {candidate.name}: act must return one int32 as its action, not {action}")
    if before != after:
        raise InputError(f"policy {candidate.name}: act must return a state like initial_state's, not {after}")


def _check_ended(cluster: ClusterState, name: str, cell: Cell, table: RequestTable, most_intervals: int) -> None:
    finished = int(np.asarray(cluster.engines.finished).sum())
    if finished < len(table):
        raise VoidRunError(
            f"policy {name} on {cell.workload}: only {finished} of {len(table)} requests have finished after "
            f"{most_intervals * cell.fleet.dt:.0f} simulated seconds; the policy holds requests for too long"
        )


def row_of(cell: Cell, summary: Summary, seed: int) -> Row:
    """One run of a cell as a row."""
    return Row(
        policy=summary.policy,
        workload=cell.workload,
        profile=_joined([profile.name for profile in cell.fleet.profiles]),
        scheduler=_joined(cell.fleet.schedulers),
        instances=len(cell.fleet.profiles),
        load=cell.load,
        seed=seed,
        e2e_mean_s=summary.e2e_mean_s,
        e2e_p99_s=summary.e2e_p99_s,
        ttft_mean_s=summary.ttft_mean_s,
        ttft_p99_s=summary.ttft_p99_s,
        tbt_mean_s=summary.tbt_mean_s,
        makespan_s=summary.makespan_s,
        router_wait_mean_s=summary.router_wait_mean_s,
        preemptions=summary.preemptions,
        rate_per_s=cell.rate_per_s,
        recomputed_tokens=summary.recomputed_tokens,
        tbt_p99_s=summary.tbt_p99_s,
        routers=cell.fleet.routers,
    )


def _joined(names: Sequence[str]) -> str:
    """The one name that all instances have, or that of each."""
    return names[0] if len(set(names)) == 1 else ",".join(names)
