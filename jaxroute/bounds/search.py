"""A clairvoyant search: the best schedule of a few requests that local search finds, each one simulated exactly.

A schedule says where each request goes, in which order they are dispatched, and how long each is held. The search knows
true lengths and all arrivals; it begins with the schedules of the policies themselves, so that what it finds is never
worse than the best of them. It proves nothing: a better schedule may exist.

Axis letters: E schedules, N requests, I instances.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute import metrics
from jaxroute.cluster.config import ClusterConfig
from jaxroute.evaluate import lane_layout
from jaxroute.policies.assigned import Assigned
from jaxroute.progress import check_progress, interval_limit
from jaxroute.results import RunResult
from jaxroute.rollout import Lane, run_to_end, start_lane
from jaxroute.simulate import Fleet, records_of
from jaxroute.types import ClusterParams, Time, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

REPLAY = Assigned("search", np.zeros(1, np.int32), np.zeros(1, np.int32))
"""Replays whatever decisions are in its state."""

SURVIVORS = 8
"""Schedules of a round from which the next ones are made."""

LONGEST_HOLD = 100
"""Router intervals by which a move holds a request longer, at the most."""


@dataclasses.dataclass(frozen=True)
class Schedules:
    """E schedules of N requests.

    Attributes:
      order: [E, N] int, the rows in the order of their dispatch.
      instance: [E, N] int, where each row goes.
      not_before: [E, N] int, first router interval in which each row may be dispatched.
    """

    order: np.ndarray
    instance: np.ndarray
    not_before: np.ndarray

    def take(self, which: np.ndarray) -> Schedules:
        """Some of them."""
        return Schedules(self.order[which], self.instance[which], self.not_before[which])

    def join(self, other: Schedules) -> Schedules:
        """These and others."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Schedules(*(np.concatenate(pair) for pair in pairs))

    @classmethod
    def of(cls, results: Sequence[RunResult]) -> Schedules:
        """What policies did in finished runs over one table."""
        dispatch = np.stack([result.records.dispatch_s for result in results])
        return cls(
            order=np.argsort(dispatch, axis=1, kind="stable"),
            instance=np.stack([result.records.instance for result in results]).astype(np.int64),
            not_before=np.rint(dispatch / results[0].dt_s).astype(np.int64),
        )


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
      e2e_mean_s: of the best schedule.
      started_s: of the best schedule that it began with.
      schedule: the best one, E = 1.
      simulated: schedules that were tried.
    """

    e2e_mean_s: float
    started_s: float
    schedule: Schedules
    simulated: int


class Simulator:
    """Simulates schedules of one table, many at a time, in one compiled program."""

    def __init__(self, fleet: Fleet, table: RequestTable) -> None:
        self.table = table
        self.fleet = dataclasses.replace(fleet, router_order="fcfs", buckets=0)
        self._config, self._params = self.fleet.config(len(table), records=True), self.fleet.params()
        self._workload = to_device(table, predict(table, "none", seed=0), dt=fleet.dt)
        self._limit = interval_limit([table], fleet.profiles, fleet.dt)

    def e2e_mean_s(self, schedules: Schedules) -> np.ndarray:
        """[E] mean E2E latency of each schedule.

        Raises:
          VoidRunError: what the simulator cannot represent.
        """
        count = len(schedules.order)
        mesh, chunk = lane_layout(count)
        rows = np.minimum(np.arange(-(-count // (mesh.size * chunk)) * mesh.size * chunk), count - 1)
        padded = schedules.take(rows)
        order = padded.order
        workloads, lanes = _lanes(
            self._config,
            self._params,
            self._workload,
            jnp.asarray(order, jnp.int32),
            jnp.asarray(np.take_along_axis(padded.instance, order, 1), jnp.int32),
            jnp.asarray(np.take_along_axis(padded.not_before, order, 1), jnp.int32),
        )
        ended, _ = run_to_end(
            self._config,
            REPLAY,
            self._params,
            workloads,
            lanes,
            mesh=mesh,
            chunk=chunk,
            most_intervals=self._limit,
        )
        clusters = jax.device_get(ended.cluster)
        check_progress(clusters, [REPLAY.name] * len(order), self.table, self._config, self.fleet.dt)
        return np.asarray([self._mean(jax.tree.map(lambda x, k=k: x[k], clusters), order[k]) for k in range(count)])

    def _mean(self, cluster: object, order: np.ndarray) -> float:
        records = records_of(cluster, self.fleet.dt)  # type: ignore[arg-type]
        result = RunResult(REPLAY.name, self.table.take(order), records, self.fleet.frontend_s, self.fleet.dt)
        return float(metrics.e2e_s(result).mean())


def search(simulator: Simulator, start: Schedules, *, seed: int, rounds: int = 40, schedules: int = 64) -> Found:
    """Improves schedules by local search: the best ones of each round and random changes of them make up the next.

    Args:
      simulator: of the table.
      start: at least one schedule to begin with.
      seed: of the changes.
      rounds: batches that are simulated after the first.
      schedules: E of a batch.
    """
    rng = np.random.default_rng(seed)
    pool, means = start, simulator.e2e_mean_s(start)
    started = float(means.min())
    for _ in range(rounds):
        best = np.argsort(means, kind="stable")[:SURVIVORS]
        pool, means = pool.take(best), means[best]
        tried = changed(pool.take(rng.integers(len(best), size=schedules)), len(simulator.fleet.profiles), rng)
        pool, means = pool.join(tried), np.concatenate([means, simulator.e2e_mean_s(tried)])
    winner = np.argsort(means, kind="stable")[:1]
    return Found(float(means[winner[0]]), started, pool.take(winner), len(start.order) + rounds * schedules)


def changed(schedules: Schedules, instances: int, rng: np.random.Generator) -> Schedules:
    """Each schedule after one to three random moves."""
    order, instance, not_before = (np.array(each) for each in vars(schedules).values())
    for row in range(len(order)):
        for _ in range(int(rng.integers(1, 4))):
            _move(order[row], instance[row], not_before[row], instances, rng)
    return Schedules(order, instance, not_before)


def _move(
    order: np.ndarray, instance: np.ndarray, not_before: np.ndarray, instances: int, rng: np.random.Generator
) -> None:
    """Changes one schedule in place: where a request goes, its place in the order, or how long it is held."""
    kind = rng.integers(4)
    one, other = rng.integers(len(order), size=2)
    if kind == 0:
        instance[one] = rng.integers(instances)
    elif kind == 1:
        instance[[one, other]] = instance[[other, one]]
    elif kind == 2:
        moved = np.insert(np.delete(order, one), other, order[one])
        order[:] = moved
    elif rng.random() < 0.5:
        not_before[one] = 0
    else:
        not_before[one] += rng.integers(1, LONGEST_HOLD + 1)


@partial(jax.jit, static_argnames=("config",))
def _lanes(
    config: ClusterConfig,
    params: ClusterParams,
    workload: Workload,
    order: jax.Array,
    instance: jax.Array,
    not_before: jax.Array,
) -> tuple[Workload, Lane]:
    """The workload in each order, and a lane at interval 0 for each schedule; [E] leaves."""

    def one(order: jax.Array, instance: jax.Array, not_before: jax.Array) -> tuple[Workload, Lane]:
        own = _reordered(workload, order)
        return own, start_lane(config, params, own, (instance, not_before), jax.random.key(0))

    return jax.vmap(one)(order, instance, not_before)


def _reordered(workload: Workload, order: jax.Array) -> Workload:
    """The requests in another order, which they become visible in; what only an environment reads is left as it is."""
    arrival = Time(step=workload.arrival.step[order], offset=workload.arrival.offset[order])
    return workload.replace(
        arrival=arrival,
        visible_step=jax.lax.cummax(workload.visible_step[order]),
        prompt_tokens=workload.prompt_tokens[order],
        output_tokens=workload.output_tokens[order],
        predicted_bucket=workload.predicted_bucket[order],
        predicted_tokens=workload.predicted_tokens[order],
        predicted_upper=workload.predicted_upper[order],
        task=workload.task[order],
        priority=workload.priority[order],
    )
