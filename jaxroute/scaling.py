"""Weak scaling: the speed of a training update on more and more devices, each with equally many environments."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxroute.devices import AXIS, lane_mesh, placed, whole_sharding
from jaxroute.errors import InputError
from jaxroute.expectation import Expected, Links, expect
from jaxroute.train.config import TrainConfig
from jaxroute.train.load_config import load_config
from jaxroute.train.ppo import make_learner, run_updates
from jaxroute.train.ppo_stage import PpoStage
from jaxroute.train.scenarios import make_groups

FIXED = ("seeds=1", "workloads.tables=1", "workloads.rate=20.0", "evolution.generations=0")
"""In place of the configuration's values: nothing that has to be measured before, and one run at a time."""

UPDATES = 2
"""Of one timed call."""

SUMS = 50
"""Of one timed call of the sums alone."""

EXPECTED_DEVICES = (8, 64)


@dataclasses.dataclass(frozen=True)
class Point:
    """Of a number of devices, measured.

    Attributes:
      devices: D.
      envs: environments on all devices together.
      env_steps_per_s: router intervals of all environments, per second of an update that simulates and learns.
      update_s: seconds of an update (best call).
      all_reduce_s: seconds that the sums over the devices take in it, measured by themselves.
      efficiency: env_steps_per_s over D times that of the first point's single device.
      efficiency_of_cores: the same over what D devices could do that share the cores of this machine; on other devices
        than the CPU, the efficiency.
    """

    devices: int
    envs: int
    env_steps_per_s: float
    update_s: float
    all_reduce_s: float
    efficiency: float
    efficiency_of_cores: float


@dataclasses.dataclass(frozen=True)
class ScalingReport:
    """All of it.

    Attributes:
      device: what ran it.
      cores: that CPU devices share; None on others.
      config: name of the training configuration.
      envs_per_device: of every device.
      sums: of one update: bytes of a sum over the devices -> how many of that size.
      points: measured, by devices.
      links: assumptions of the expectation.
      expected_from_s: seconds of one device's update that the expectation starts from.
      expected: for more devices.
    """

    device: str
    cores: int | None
    config: str
    envs_per_device: int
    sums: dict[int, int]
    points: tuple[Point, ...]
    links: Links
    expected_from_s: float
    expected: tuple[Expected, ...]


def run_scaling(
    config: str, devices: Sequence[int], *, envs: int | None, repeats: int, links: Links, update_s: float | None
) -> Iterator[Point | ScalingReport]:
    """Measures one number of devices after the other; yields each point as it is done, and the report at the end.

    Args:
      config: of a training, name or file.
      devices: ascending.
      envs: of every device in each group; None for the configuration's lanes.
      repeats: timed calls, of which the best counts.
      links: for the expectation.
      update_s: seconds of an update of one device, measured elsewhere, for the expectation; None for the first point's.

    Raises:
      InputError: there are not as many devices, or the configuration cannot be run.
    """
    check_devices(devices)
    base = load_config(config, FIXED)
    if envs is not None:
        base = _with_lanes(base, [envs] * len(base.fleets))
    cores = len(os.sched_getaffinity(0)) if jax.default_backend() == "cpu" else None
    points: list[Point] = []
    sums: Counter[int] = Counter()
    for count in devices:
        point, sums = _measure(base, count, repeats)
        points.append(with_efficiency(point, points[0] if points else point, cores))
        yield points[-1]
    first = points[0]
    start_s = first.update_s - first.all_reduce_s if update_s is None else update_s
    steps = base.steps_of_an_update
    yield ScalingReport(
        device=jax.devices()[0].device_kind,
        cores=cores,
        config=base.name,
        envs_per_device=sum(fleets.lanes for fleets in base.fleets),
        sums=dict(sorted(sums.items())),
        points=tuple(points),
        links=links,
        expected_from_s=start_s,
        expected=tuple(
            expect(sums, update_s=start_s, env_steps=steps, devices=count, links=links) for count in EXPECTED_DEVICES
        ),
    )


def check_devices(devices: Sequence[int]) -> None:
    """Makes as many devices of the CPU as are asked for, where that is still possible.

    Raises:
      InputError: there are not as many devices.
    """
    wanted = max(devices)
    # An error: this process has used them before.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", wanted)
    if len(jax.devices()) < wanted:
        raise InputError(f"--devices {wanted}: there are {len(jax.devices())} here; ask for fewer")


def sums_of(jaxpr: Any, times: int = 1) -> Counter[int]:
    """Bytes -> how often so many are summed over the devices when the program runs once.

    Sums that do not wait for each other count as one, as XLA merges them.

    Args:
      jaxpr: of the program; loops without a fixed length count as one pass.
      times: how often it runs.
    """
    found: Counter[int] = Counter()
    # Of every variable, how many sums come one after the other before it is known.
    depth: dict[int, int] = {}
    together: Counter[int] = Counter()
    for equation in jaxpr.eqns:
        own = max((depth.get(id(var), 0) for var in equation.invars), default=0)
        if equation.primitive.name.startswith("psum"):
            together[own] += sum(var.aval.size * var.aval.dtype.itemsize for var in equation.invars)
            own += 1
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        parts = jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_program)
        inside = [sums_of(getattr(part, "jaxpr", part), inner) for part in parts if _is_program(part)]
        for each in inside:
            found += each
        own += any(inside)
        depth.update((id(var), own) for var in equation.outvars)
    for size in together.values():
        found[size] += times
    return found


def _is_program(part: Any) -> bool:
    return hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns")


def _with_lanes(config: TrainConfig, lanes: Sequence[int]) -> TrainConfig:
    fleets = tuple(dataclasses.replace(each, lanes=own) for each, own in zip(config.fleets, lanes, strict=True))
    return dataclasses.replace(config, fleets=fleets)


def _measure(base: TrainConfig, devices: int, repeats: int) -> tuple[Point, Counter[int]]:
    """A point without its efficiencies, and the sums of an update."""
    config = _with_lanes(base, [fleets.lanes * devices for fleets in base.fleets])
    groups = make_groups(config)
    mesh = lane_mesh(devices)
    learner = make_learner(config, tuple(group.env for group in groups))
    stage = PpoStage(config, groups, mesh, learner)
    state = stage.placed(stage.initial(None))
    params = tuple(group.params for group in groups)
    sums = sums_of(run_updates.trace(learner, params, state, mesh=mesh, count=1).jaxpr.jaxpr)
    weights = (state.policy, state.critic)
    all_reduce_s = _all_reduce_s(sums, weights, mesh, repeats)
    best = float("inf")
    # The first call compiles.
    for number in range(1 + repeats):
        start = time.perf_counter()
        state, _ = stage.advance(state, UPDATES)
        if number:
            best = min(best, (time.perf_counter() - start) / UPDATES)
    lanes = sum(fleets.lanes for fleets in config.fleets)
    point = Point(devices, lanes, config.steps_of_an_update / best, best, all_reduce_s, 1.0, 1.0)
    return point, sums


def with_efficiency(point: Point, first: Point, cores: int | None) -> Point:
    """The point with its efficiencies over the first one; `cores` are those that CPU devices share."""
    each = first.env_steps_per_s / first.devices
    usable = point.devices if cores is None else min(point.devices, max(cores, first.devices))
    return dataclasses.replace(
        point,
        efficiency=point.env_steps_per_s / (point.devices * each),
        efficiency_of_cores=point.env_steps_per_s / (usable * each),
    )


def _all_reduce_s(sums: Counter[int], weights: Any, mesh: jax.sharding.Mesh, repeats: int) -> float:
    """Seconds of all sums of an update, from the time of the sum of the weights and of a single number."""
    if mesh.size == 1:
        return 0.0
    sizes, times = [], []
    for tree in (jnp.zeros(1), weights):
        sizes.append(sum(leaf.nbytes for leaf in jax.tree.leaves(tree)))
        times.append(_sum_s(placed(jax.device_get(tree), whole_sharding(mesh)), mesh, repeats))
    per_byte = max(0.0, times[1] - times[0]) / (sizes[1] - sizes[0])
    return sum(count * (times[0] + max(0, size - sizes[0]) * per_byte) for size, count in sums.items())


def _sum_s(tree: Any, mesh: jax.sharding.Mesh, repeats: int) -> float:
    """Seconds of one sum of a pytree over the devices (best call)."""
    best = float("inf")
    for number in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(_sums(tree, mesh=mesh))
        if number:
            best = min(best, time.perf_counter() - start)
    return best / SUMS


@partial(jax.jit, static_argnames=("mesh",))
def _sums(tree: Any, *, mesh: jax.sharding.Mesh) -> Any:
    """One sum after the other, each of what the one before gave."""

    def one(carry: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda leaf: leaf / mesh.size, jax.lax.psum(carry, AXIS)), None

    def local(tree: Any) -> Any:
        return jax.lax.scan(one, tree, None, length=SUMS)[0]

    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(local, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(tree)
