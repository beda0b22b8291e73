"""Random fleets and workloads, run through the JAX simulator and through the reference.

All cases have the same shapes, so that a batching order compiles once.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import reference as ref
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import make_config, make_params, steps_per_interval
from jaxroute.cluster.state import ClusterState
from jaxroute.policies.assigned import Assigned
from jaxroute.policies.protocol import Policy
from jaxroute.profiles import StepProfile
from jaxroute.progress import check_progress
from jaxroute.results import RequestRecords, Timeline
from jaxroute.rollout import run_intervals, stack_lanes, start_lane
from jaxroute.simulate import records_of
from jaxroute.timeline import TimelineBuilder, collect
from jaxroute.types import Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

INSTANCES, REQUESTS, SLOTS, BLOCK_SIZE, STEPS = 3, 48, 12, 16, 8
SCHEDULERS = ("prefill-first", "chunked", "whole-prompt")
SEGMENT = 512


@dataclasses.dataclass(frozen=True)
class Case:
    """One fleet, one workload, one list of decisions."""

    profiles: tuple[StepProfile, ...]
    schedulers: tuple[str, ...]
    batching: str
    table: RequestTable
    instance: np.ndarray
    not_before: np.ndarray
    dt: float = 0.02

    @property
    def config(self) -> ClusterConfig:
        config = make_config(
            self.profiles, queue_capacity=REQUESTS, dt=self.dt, batching=self.batching, records=True, slots=SLOTS
        )
        return dataclasses.replace(config, phases=BLOCK_SIZE, max_steps_per_interval=STEPS)

    @property
    def workload(self) -> Workload:
        return to_device(self.table, predict(self.table, "oracle", seed=0), dt=self.dt, size=REQUESTS)


def random_case(seed: int, batching: str = "fcfs", scheduler: str | None = None) -> Case:
    """A case of any kind: starved or ample KV, light or heavy load, homogeneous or mixed."""
    rng = np.random.default_rng(seed)
    mixed = rng.random() < 0.4
    kinds = [_random_profile(rng, index) for index in range(INSTANCES if mixed else 1)]
    profiles = tuple(kinds[index % len(kinds)] for index in range(INSTANCES))
    rules = [scheduler or str(rng.choice(SCHEDULERS)) for _ in range(INSTANCES if rng.random() < 0.3 else 1)]
    schedulers = tuple(rules[index % len(rules)] for index in range(INSTANCES))
    count = int(rng.integers(1, REQUESTS + 1))
    table = _random_table(rng, count, profiles)
    instance = rng.integers(0, INSTANCES, count) if rng.random() < 0.7 else np.arange(count) % INSTANCES
    not_before = np.zeros(count, np.int64)
    if rng.random() < 0.3:
        not_before = np.ceil(table.arrival_s / 0.02).astype(np.int64) + rng.integers(0, 40, count)
    return Case(profiles, schedulers, batching, table, instance, not_before)


def _random_profile(rng: np.random.Generator, index: int) -> StepProfile:
    slow = rng.uniform(0.3, 3.0)
    scales = {"W": 12, "h": 8, "g": 0.15, "d": 2e-3, "e": 0.05, "f": 2e-5, "x": 2e-5, "u": 1.0, "v": 1.5}
    coefficients = {name: float(scale * slow * rng.uniform(0.2, 1.8)) for name, scale in scales.items()}
    for name in rng.choice(list(scales), size=rng.integers(0, 5), replace=False):
        if name != "h":
            coefficients[name] = 0.0
    coefficients["h"] = max(coefficients["h"], 3.0)
    block_size = int(rng.choice([1, 4, 7, 16]))
    # From barely enough for the longest request to ample.
    kv_tokens = int(200 * rng.choice([1.02, 1.1, 1.3, 1.6, 2.5, 20]))
    return StepProfile(
        name=f"random-{index}",
        hardware="none",
        model="none",
        engine="none",
        coefficients_ms=coefficients,
        frontend_ms=0.0,
        kv_blocks=-(-kv_tokens // block_size) + 2,
        block_size=block_size,
        max_num_seqs=int(rng.integers(1, SLOTS + 1)),
        max_num_batched_tokens=int(rng.choice([200, 256, 1000])),
        max_model_len=200,
        grad1=1e-4,
        grad2=1e-5,
        provenance={"status": "derived"},
    )


def _random_table(rng: np.random.Generator, count: int, profiles: tuple[StepProfile, ...]) -> RequestTable:
    rate = rng.choice([2.0, 20.0, 100.0, 1000.0])
    arrival = np.cumsum(rng.exponential(1 / rate, count))
    if rng.random() < 0.3:
        arrival = np.round(arrival / 0.02) * 0.02
    prompt = np.clip(rng.lognormal(3, 1.2, count), 1, 120).astype(int)
    output = np.clip(rng.lognormal(3, 1.0, count), 1, 80).astype(int)
    if rng.random() < 0.2:
        output[:] = rng.integers(1, 30)
    return RequestTable.create(arrival, prompt, output, name="random")


def chunk_small(case: Case, budget: int) -> Case:
    """The case with chunked prefill and a token budget that cuts prompts."""
    profiles = tuple(dataclasses.replace(p, max_num_batched_tokens=max(budget, p.max_num_seqs)) for p in case.profiles)
    return dataclasses.replace(case, profiles=profiles, schedulers=("chunked",) * INSTANCES)


def run_jax(case: Case, policy: Policy | None = None) -> tuple[ClusterState, RequestRecords, Timeline]:
    """The case in the JAX simulator, under its decisions or a policy."""
    assert max(steps_per_interval(p, case.dt) for p in case.profiles) <= STEPS
    count = len(case.table)
    pad = (0, REQUESTS - count)
    decisions = Assigned(
        "decisions", np.pad(case.instance, pad).astype(np.int32), np.pad(case.not_before, pad).astype(np.int32)
    )
    policy = policy or decisions
    # One static policy for all cases: the decisions themselves are in its state.
    static = policy if policy is not decisions else REPLAY
    config, params, workload = case.config, make_params(case.profiles, case.schedulers, dt=case.dt), case.workload
    lane = start_lane(config, params, workload, policy.initial_state(INSTANCES), jax.random.key(0))
    lanes = stack_lanes(lane, 1)
    builder = TimelineBuilder(case.dt)
    while True:
        lanes, trace = run_intervals(config, static, params, workload, lanes, length=SEGMENT)
        check_progress(lanes.cluster, ["test"], case.table, config, case.dt)
        collect([builder], trace)
        if int(jnp.sum(lanes.cluster.engines.finished)) == count:
            break
    cluster = jax.tree.map(lambda leaf: leaf[0], jax.device_get(lanes.cluster))
    records = records_of(cluster, case.dt)
    records = RequestRecords(**{name: values[:count] for name, values in vars(records).items()})
    return cluster, records, builder.build()


REPLAY = Assigned("replay", np.zeros(REQUESTS, np.int32), np.zeros(REQUESTS, np.int32))


def run_reference(case: Case, router=None) -> ref.RefResult:
    """The case in the reference simulator, under its decisions or a router."""

    def decided(fleet: ref.RefFleet, tick: int, index: int) -> int | None:
        del fleet
        return int(case.instance[index]) if tick >= case.not_before[index] else None

    table = case.table
    requests = [
        ref.RefRequest(float(a), int(p), int(o))
        for a, p, o in zip(table.arrival_s, table.prompt_tokens, table.output_tokens, strict=True)
    ]
    instances = [
        ref.RefInstance(
            coefficients_ms=profile.coefficients_ms,
            kv_blocks=profile.kv_blocks,
            block_size=profile.block_size,
            max_num_seqs=profile.max_num_seqs,
            max_num_batched_tokens=profile.max_num_batched_tokens,
            scheduler=scheduler,
            batching=case.batching,
        )
        for profile, scheduler in zip(case.profiles, case.schedulers, strict=True)
    ]
    return ref.simulate(requests, instances, router or decided, case.dt)
