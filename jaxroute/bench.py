"""Speed of the simulator on this machine, beside its plain-Python reference and the memory's own speed.

Every figure is taken on complete runs: all requests of all environments, from the first arrival to the last token,
the drain included, with round robin in the loop.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp

from jaxroute.cluster.fleet import is_void
from jaxroute.devices import lane_mesh, lane_sharding
from jaxroute.policies import heuristic
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.progress import VoidRunError
from jaxroute.rollout import run_to_end, start_lane
from jaxroute.simulate import Fleet
from jaxroute.workload import make_workload
from jaxroute.workload.device import stack, to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

REFERENCE_FILE = Path(__file__).parents[1] / "tests" / "reference.py"
"""The plain-Python simulator: in a checkout only."""

QUEUE_CAPACITY = 1024
MOST_INTERVALS = 100_000


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one row of the benchmark runs.

    Attributes:
      scheduler: of every instance.
      instances: I.
      envs: E, simulated side by side, each with its own 2,000 requests.
      records: whether per-request records are kept.
      profile: of every instance.
      slots: S, most sequences that an instance runs at once.
      rate: requests per second, for the whole fleet.
      requests: of each environment.
    """

    scheduler: str = "chunked"
    instances: int = 4
    envs: int = 64
    records: bool = False
    profile: str = "v100-32gb-llama2-7b"
    slots: int = 128
    rate: float = 20.0
    requests: int = 2000


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out.

    Attributes:
      scheduler, instances, slots, envs, records, profile: the setting; slots is S.
      env_steps_per_s: router intervals simulated per second of wall time, all environments together (best run).
      requests_per_s: requests simulated per second of wall time (best run).
      requests_per_cpu_s: requests simulated per second of processor time (best run).
      compile_s: tracing, lowering and compiling, seconds, without a cache.
      memory_per_env_bytes: state and workload of one environment.
      bytes_per_env_step: moved by an interval that reads and writes the environment's state once.
      bandwidth_share: those bytes times env_steps_per_s over the measured memory bandwidth: how near the speed is to
        that of a program that streams its state from memory; above 1 where most of the state stays in the caches or
        is never touched.
    """

    scheduler: str
    instances: int
    slots: int
    envs: int
    records: bool
    profile: str
    env_steps_per_s: float
    requests_per_s: float
    requests_per_cpu_s: float
    compile_s: float
    memory_per_env_bytes: int
    bytes_per_env_step: int
    bandwidth_share: float


@dataclasses.dataclass(frozen=True)
class Report:
    """All rows, and what they are held against.

    Attributes:
      device: what ran it.
      devices: how many of them.
      memory_bytes_per_s: measured by a streaming sum over all devices.
      rows: one for each setting.
      reference_requests_per_cpu_s: the plain-Python simulator on the requests of the first row's first environment;
        None without a checkout.
      ratio: first row's requests_per_cpu_s over the reference's.
      ratio_with_records: the same for the first row that keeps per-request records, as the reference does.
    """

    device: str
    devices: int
    memory_bytes_per_s: float
    rows: tuple[Row, ...]
    reference_requests_per_cpu_s: float | None
    ratio: float | None
    ratio_with_records: float | None


FULL = (
    Setting(),
    Setting(records=True),
    Setting(scheduler="prefill-first"),
    Setting(scheduler="whole-prompt"),
    Setting(envs=1),
    Setting(envs=8),
    Setting(envs=256),
    Setting(instances=2, rate=10.0),
    Setting(instances=8, rate=40.0),
    Setting(instances=16, rate=48.0),
    Setting(slots=32, rate=16.0),
    Setting(slots=256),
    Setting(slots=512),
    Setting(profile="h100-80gb-llama2-7b"),
)
"""Everything that is worth knowing."""

QUICK = (Setting(), Setting(records=True))
"""Under a minute."""


def run_bench(settings: Iterable[Setting], *, seed: int = 0, repeats: int = 3) -> Iterator[Row | Report]:
    """Measures one setting after the other; yields each row as it is done, and the report at the end.

    Args:
      settings: what to run; the first is held against the reference.
      seed: of the workloads.
      repeats: timed runs of each compiled program, of which the best counts.
    """
    settings = tuple(settings)
    # A program that comes out of a cache says nothing of the time to compile it.
    jax.config.update("jax_enable_compilation_cache", False)
    bandwidth = memory_bandwidth()
    rows = []
    for setting in settings:
        rows.append(_measure(setting, seed, repeats, bandwidth))
        yield rows[-1]
    reference = reference_requests_per_cpu_s(settings[0], seed)
    with_records = [row.requests_per_cpu_s for row in rows if row.records]
    yield Report(
        device=jax.devices()[0].device_kind,
        devices=len(jax.devices()),
        memory_bytes_per_s=bandwidth,
        rows=tuple(rows),
        reference_requests_per_cpu_s=reference,
        ratio=rows[0].requests_per_cpu_s / reference if reference else None,
        ratio_with_records=with_records[0] / reference if reference and with_records else None,
    )


def memory_bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes per second that all devices together stream from memory, measured by `x + 1` in place."""
    mesh = lane_mesh(len(jax.devices()))
    size = megabytes * 2**20 // 4
    values = jax.device_put(jnp.zeros(size - size % len(jax.devices()), jnp.float32), lane_sharding(mesh))
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    values = jax.block_until_ready(advance(values))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        values = jax.block_until_ready(advance(values))
        best = min(best, time.perf_counter() - start)
    return 2 * 4 * values.shape[0] / best


def reference_requests_per_cpu_s(setting: Setting, seed: int) -> float | None:
    """Requests per second of processor time of the plain-Python simulator; None where it is not here."""
    reference = _load_reference()
    if reference is None:
        return None
    table = _tables(setting, seed, 1)[0]
    profile = _profile(setting)
    requests = [
        reference.RefRequest(float(arrival), int(prompt), int(output))
        for arrival, prompt, output in zip(table.arrival_s, table.prompt_tokens, table.output_tokens, strict=True)
    ]
    instance = reference.RefInstance(
        coefficients_ms=profile.coefficients_ms,
        kv_blocks=profile.kv_blocks,
        block_size=profile.block_size,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        scheduler=setting.scheduler,
        batching="fcfs",
    )
    start = time.process_time()
    reference.simulate(
        requests, [instance] * setting.instances, lambda _fleet, _tick, index: index % setting.instances, 0.02
    )
    return len(table) / (time.process_time() - start)


def _measure(setting: Setting, seed: int, repeats: int, bandwidth: float) -> Row:
    profile = _profile(setting)
    fleet = Fleet((profile,) * setting.instances, (setting.scheduler,) * setting.instances)
    fleet = dataclasses.replace(fleet, queue_capacity=QUEUE_CAPACITY)
    config, params = fleet.config(setting.requests, records=setting.records), fleet.params()
    policy = heuristic("round-robin")
    mesh = lane_mesh(min(len(jax.devices()), setting.envs))
    per_device = setting.envs // mesh.size
    tables = _tables(setting, seed, setting.envs)
    columns = [to_device(table, predict(table, "oracle", seed=seed), dt=fleet.dt) for table in tables]
    workloads = stack(columns)
    lanes = jax.vmap(lambda workload, key: start_lane(config, params, workload, policy.initial_state(1), key))(
        workloads, jax.random.split(jax.random.key(seed), setting.envs)
    )
    workloads, lanes = jax.device_put((workloads, lanes), lane_sharding(mesh))
    jax.clear_caches()
    start = time.perf_counter()
    program = run_to_end.lower(
        config,
        policy,
        params,
        workloads,
        lanes,
        mesh=mesh,
        chunk=_chunk(per_device),
        most_intervals=MOST_INTERVALS,
    ).compile()
    compile_s = time.perf_counter() - start
    best_wall, best_cpu, env_steps = float("inf"), float("inf"), 0
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        done, intervals = jax.block_until_ready(program(params, workloads, lanes))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        best_wall, best_cpu, env_steps = min(best_wall, wall), min(best_cpu, cpu), int(intervals.sum())
    total = setting.envs * setting.requests
    if bool(jax.vmap(is_void)(done.cluster).any()) or int(done.cluster.engines.finished.sum()) != total:
        raise VoidRunError(f"the benchmark's run is void ({setting}); raise QUEUE_CAPACITY or MOST_INTERVALS")
    # Read and written once.
    step_bytes = 2 * _bytes_of(lanes) // setting.envs
    return Row(
        scheduler=setting.scheduler,
        instances=setting.instances,
        slots=config.slots,
        envs=setting.envs,
        records=setting.records,
        profile=setting.profile,
        env_steps_per_s=env_steps / best_wall,
        requests_per_s=total / best_wall,
        requests_per_cpu_s=total / best_cpu,
        compile_s=compile_s,
        memory_per_env_bytes=_bytes_of((workloads, lanes)) // setting.envs,
        bytes_per_env_step=step_bytes,
        bandwidth_share=step_bytes * env_steps / best_wall / bandwidth,
    )


def _profile(setting: Setting) -> StepProfile:
    return dataclasses.replace(load_profile(setting.profile), max_num_seqs=setting.slots)


def _chunk(per_device: int) -> int:
    """Lanes side by side: few enough for a core's cache on CPU, all of them elsewhere."""
    if jax.default_backend() != "cpu":
        return per_device
    return max(size for size in range(1, min(per_device, 32) + 1) if per_device % size == 0)


def _tables(setting: Setting, seed: int, count: int) -> list[RequestTable]:
    profile = _profile(setting)
    return [
        make_workload("five-task", profile=profile, requests=setting.requests, rate=setting.rate, seed=seed + env)
        for env in range(count)
    ]


def _bytes_of(tree: object) -> int:
    # Typed keys are opaque: their bytes do not matter here.
    arrays = [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays)


def _load_reference() -> ModuleType | None:
    if not REFERENCE_FILE.is_file():
        return None
    spec = importlib.util.spec_from_file_location("jaxroute_reference", REFERENCE_FILE)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
