"""The rate at which a fleet is just saturated by a workload: what load 1.0 means."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from jaxroute.cluster.config import ClusterConfig
from jaxroute.devices import lane_mesh
from jaxroute.policies import HEURISTICS
from jaxroute.progress import MOST_INTERVALS, VoidRunError, check_progress, interval_limit
from jaxroute.rollout import run_to_end, stack_lanes, start_lane
from jaxroute.simulate import Fleet, records_of
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

POLICY = HEURISTICS["join-shortest-queue"]
EARLY, LATE = 0.1, 0.9
"""Shares of the completions between which the rate is taken: not while the batches fill, nor while they drain."""

ROUNDS_HELD = 2
"""An instance is given so many times what it can run at once: what runs and as much again in wait."""

REQUESTS_PER_PLACE = 20
"""With so many requests for each sequence that can run at once, the last tenth is left when the router has none."""

FASTEST_SHARE = 0.25
"""Share of what the router could dispatch that a measured rate may be; above it, the router is made faster."""

LIMIT_ROOM = 16
"""Times the intervals that a run one request at a time would take; a saturated fleet is much faster than that."""


def requests_needed(fleet: Fleet) -> int:
    """Requests of a table that keeps the fleet's batches full until `LATE` of them are done."""
    return REQUESTS_PER_PLACE * sum(profile.max_num_seqs for profile in fleet.profiles)


def estimate_capacity(fleet: Fleet, table: RequestTable) -> float:
    """Requests per second that the fleet completes when it never runs out of work.

    All requests of the table reach the router at once. It sends each to the shortest queue, and holds it while every
    instance has plenty, so that in a mixed fleet the fast ones are not done first. The router of the estimate acts more
    often than the fleet's own wherever one dispatch per `dt` would be the limit.

    Args:
      fleet: the servers.
      table: the requests, whose arrival times are ignored; at least `requests_needed`, or it comes out too low.

    Raises:
      InputError: a request that cannot run, or too few requests to take a rate from.
    """
    fleet.check(table)
    most_held = ROUNDS_HELD * max(profile.max_num_seqs for profile in fleet.profiles)
    fleet = dataclasses.replace(fleet, queue_capacity=most_held)
    burst = table.replace(arrival_s=np.zeros(len(table)))
    # One compiled program serves all rounds: a smaller dt needs no other sizes, and the limit has room for it.
    config = fleet.config(len(table), records=True)
    limit = LIMIT_ROOM * interval_limit([burst], fleet.profiles, fleet.dt)
    while True:
        rate = sustained_rate(_finish_s(fleet, config, burst, limit))
        if not np.isfinite(rate):
            raise VoidRunError(f"{table.name}: {len(table)} requests are too few to take a rate from; give more")
        if rate * fleet.dt <= FASTEST_SHARE:
            return rate
        fleet = dataclasses.replace(fleet, dt=FASTEST_SHARE / (2 * rate))


def sustained_rate(finish_s: np.ndarray) -> float:
    """Completions per second between the `EARLY` and the `LATE` share of them.

    Args:
      finish_s: [N] seconds, in any order. Where several finish at once, all of them count or none.

    Returns:
      Requests per second; infinite where all of them finish at once.
    """
    ordered = np.sort(finish_s)
    first, last = (ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in (EARLY, LATE))
    between = np.searchsorted(ordered, last, side="right") - np.searchsorted(ordered, first, side="right")
    return float(between / (last - first)) if last > first else float("inf")


def _finish_s(fleet: Fleet, config: ClusterConfig, table: RequestTable, most_intervals: int) -> np.ndarray:
    """[N] when each request finishes, seconds."""
    params = fleet.params()
    workload = to_device(table, predict(table, "none", seed=0), dt=fleet.dt)
    lane = start_lane(config, params, workload, POLICY.initial_state(len(fleet.profiles)), jax.random.key(0))
    done, _ = run_to_end(
        config,
        POLICY,
        params,
        jax.tree.map(lambda leaf: leaf[None], workload),
        stack_lanes(lane, 1),
        mesh=lane_mesh(1),
        chunk=1,
        most_intervals=min(most_intervals, MOST_INTERVALS),
    )
    clusters = jax.device_get(done.cluster)
    check_progress(clusters, [POLICY.name], table, config, fleet.dt)
    if int(clusters.engines.finished.sum()) < len(table):
        raise VoidRunError(f"{table.name}: the estimate of the fleet's capacity did not come to an end")
    return records_of(jax.tree.map(lambda leaf: leaf[0], clusters), fleet.dt).finish_s
