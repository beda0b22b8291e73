"""Runs policies over one workload on one fleet, to the end of its last request, and hands over NumPy records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import DEFAULT_SCRAPE_S, check_requests_fit, longest_request, make_config, make_params
from jaxroute.cluster.state import ClusterState
from jaxroute.policies.assigned import Decisions
from jaxroute.policies.bank import PolicyBank
from jaxroute.policies.in_turn import in_turn
from jaxroute.policies.protocol import Policy
from jaxroute.profiles import StepProfile
from jaxroute.progress import check_progress
from jaxroute.results import RequestRecords, RunResult
from jaxroute.rollout import run_intervals, stack_lanes, start_lane
from jaxroute.router_order import DEFAULT_AGEING
from jaxroute.timeline import TimelineBuilder, collect
from jaxroute.types import ClusterParams, Time
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.table import RequestTable

SEGMENT = 2048
"""Router intervals between two looks at the progress."""

Progress = Callable[[int, int], None]
"""Called with the requests finished so far and all of them, summed over the policies."""


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A fleet of servers, on the host.

    Attributes:
      profiles: one for each of I instances.
      schedulers: one name for each instance.
      dt: router interval, seconds; of several routers one acts in each, so that a router acts every `routers * dt`.
      batching: order of the instances' waiting queues.
      router_order: order of the router queue, `fcfs` or `shortest-predicted`.
      ageing: predicted tokens that a second of waiting is worth in the shortest-predicted order.
      spf_edges: to which that order rounds predicted tokens down, ascending; without any they count as they are.
      scrape_s: time between two scrapes of the servers' metrics, seconds.
      queue_capacity: requests that one instance can hold; by default as many as the workload has.
      buckets: B, length buckets by which the view counts requests, for the paper's observation; 0 for none.
      routers: R, replicas of the router that share no state. Requests come to them by turns, and each knows its own
        dispatches and streams and the servers' metrics.
    """

    profiles: tuple[StepProfile, ...]
    schedulers: tuple[str, ...]
    dt: float = 0.02
    batching: str = "fcfs"
    router_order: str = "fcfs"
    ageing: float = DEFAULT_AGEING
    spf_edges: tuple[int, ...] = ()
    scrape_s: float = DEFAULT_SCRAPE_S
    queue_capacity: int | None = None
    buckets: int = 0
    routers: int = 1

    def params(self) -> ClusterParams:
        """The fleet's arrays."""
        return make_params(self.profiles, self.schedulers, dt=self.dt, scrape_s=self.scrape_s)

    def config(self, requests: int, *, records: bool) -> ClusterConfig:
        """The fleet's static sizes for a workload of `requests`."""
        # A request that is preempted goes back to the queue, so running ones need a place as well.
        capacity = max(requests, 1) if self.queue_capacity is None else self.queue_capacity
        config = make_config(
            self.profiles,
            queue_capacity=capacity,
            dt=self.dt,
            batching=self.batching,
            router_order=self.router_order,
            records=records,
            routers=self.routers,
        )
        return dataclasses.replace(config, buckets=self.buckets)

    @property
    def frontend_s(self) -> np.ndarray:
        """[I] float64, seconds that a client of each server sees on top of TTFT and E2E."""
        return np.asarray([profile.frontend_ms / 1e3 for profile in self.profiles])

    @property
    def longest_request(self) -> int:
        """Prompt + output tokens up to which a request can run to its end on every server, preempted or not."""
        return min(longest_request(*each) for each in zip(self.profiles, self.schedulers, strict=True))

    def check(self, table: RequestTable) -> None:
        """Checks that every request can run on every server.

        Raises:
          InputError: names the first that cannot, and why.
        """
        for profile, scheduler in zip(self.profiles, self.schedulers, strict=True):
            check_requests_fit(table.prompt_tokens, table.output_tokens, profile, scheduler, table.name)


def simulate(
    fleet: Fleet,
    table: RequestTable,
    prediction: Prediction,
    policies: Sequence[Policy],
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[RunResult]:
    """Runs each policy over the same requests with the same random numbers.

    Args:
      fleet: the servers.
      table: the requests.
      prediction: what the router is told of their output lengths.
      policies: they share one compiled program.
      seed: of the policies' random choices.
      progress: called now and then.

    Raises:
      InputError: a request that cannot run, or a run that the simulator cannot represent; nothing is dropped.
    """
    fleet.check(table)
    config, params = fleet.config(len(table), records=True), fleet.params()
    workload = to_device(table, prediction, dt=fleet.dt, ageing=fleet.ageing, spf_edges=fleet.spf_edges)
    bank = PolicyBank(tuple(in_turn(policy, fleet.routers) for policy in policies))
    index, states = bank.initial_state(len(fleet.profiles))
    lanes = stack_lanes(start_lane(config, params, workload, (index, states), jax.random.key(seed)), len(policies))
    lanes = lanes.replace(policy=(jnp.arange(len(policies), dtype=jnp.int32), lanes.policy[1]))
    timelines = [TimelineBuilder(fleet.dt) for _ in policies]
    total = len(table) * len(policies)
    finished = 0
    while finished < total:
        lanes, trace = run_intervals(config, bank, params, workload, lanes, length=SEGMENT)
        check_progress(lanes.cluster, [policy.name for policy in policies], table, config, fleet.dt)
        collect(timelines, trace)
        finished = int(np.asarray(lanes.cluster.engines.finished).sum())
        if progress is not None:
            progress(finished, total)
    results = results_of(fleet, table, [policy.name for policy in policies], lanes.cluster)
    return [
        dataclasses.replace(result, timeline=timeline.build())
        for result, timeline in zip(results, timelines, strict=True)
    ]


def replay(
    fleet: Fleet,
    table: RequestTable,
    decisions: Decisions,
    *,
    name: str,
    prediction: Prediction,
    progress: Progress | None = None,
) -> RunResult:
    """Runs given decisions: each request goes to its instance at the first router interval not before its time.

    One request is dispatched per interval, so several decisions within one dt are spread over the next ones; a
    smaller dt comes closer to their times.
    """
    if fleet.router_order != "fcfs" or fleet.routers != 1:
        raise ValueError("decisions are replayed in their own order: by one router in the order fcfs")
    order = decisions.order()
    permuted = Prediction(prediction.bucket[order], prediction.tokens[order], prediction.upper[order])
    [result] = simulate(fleet, table.take(order), permuted, [decisions.policy(name, fleet.dt)], progress=progress)
    back = np.argsort(order)
    records = dataclasses.replace(
        result.records, **{field: values[back] for field, values in vars(result.records).items()}
    )
    return dataclasses.replace(result, table=table, records=records)


def results_of(fleet: Fleet, table: RequestTable, names: Sequence[str], clusters: ClusterState) -> list[RunResult]:
    """The finished runs of a batch of fleets ([E] leaves) over one table, a name for each; without timelines."""
    clusters = jax.device_get(clusters)
    return [
        RunResult(
            policy=name,
            table=table,
            records=records_of(jax.tree.map(lambda leaf, lane=lane: leaf[lane], clusters), fleet.dt),
            frontend_s=fleet.frontend_s,
            dt_s=fleet.dt,
        )
        for lane, name in enumerate(names)
    ]


def records_of(cluster: ClusterState, dt: float) -> RequestRecords:
    """The records of a finished run, from the state of one fleet in NumPy arrays."""
    instance = np.asarray(cluster.instance)
    rows = np.arange(len(instance))
    book = cluster.engines.ledger
    if book is None:
        raise ValueError("the run kept no records")

    def seconds(time: Time) -> np.ndarray:
        step, offset = np.asarray(time.step)[instance, rows], np.asarray(time.offset)[instance, rows]
        return step.astype(np.float64) * dt + offset

    return RequestRecords(
        instance=instance,
        dispatch_s=np.asarray(cluster.dispatch_step).astype(np.float64) * dt,
        start_s=seconds(book.start),
        first_token_s=seconds(book.requests.first),
        finish_s=seconds(book.requests.last),
        max_gap_s=np.asarray(book.requests.max_gap)[instance, rows].astype(np.float64),
        preemptions=np.asarray(book.preemptions)[instance, rows],
        recomputed_tokens=np.asarray(book.recomputed_tokens)[instance, rows],
    )
