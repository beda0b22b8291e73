"""What single servers complete when they never run out of work: many servers measured in one compiled program.

The servers of a saturated fleet do not wait for each other, so a fleet's capacity is the sum of theirs. The fleets of a
training run are drawn from few kinds of servers; measuring each kind once is far cheaper than measuring each fleet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.capacity import sustained_rate
from jaxroute.cluster import fleet as cluster
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import make_config
from jaxroute.errors import InputError
from jaxroute.policies import HEURISTICS
from jaxroute.profiles import StepProfile
from jaxroute.progress import check_progress
from jaxroute.rollout import Lane, interval, start_lane
from jaxroute.simulate import Fleet, records_of
from jaxroute.types import ClusterParams, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.draws import Draws
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

Tree = TypeVar("Tree")

SEED = 2**31 - 2
"""Of the requests that servers are measured with; neither trained nor evaluated on."""

FEWEST_REQUESTS, REQUESTS_PER_PLACE = 1280, 24
"""With so many, and so many for each sequence that really runs at once, the measured middle is a steady state."""

SAMPLE_REQUESTS = 200_000
"""So many requests are drawn, and of these every so-manyth by length taken: few requests then have a typical sum."""

SHARE_DISPATCHED = 0.25
"""The router interval is chosen so that about so many requests are completed in it."""

MOST_SHARE = 0.6
"""Above it, dispatching one request per interval may have been the limit, and the interval is halved."""

MOST_STEPS = 16
"""Engine steps that the router interval may hold; what is kept of an interval grows with them."""

INTERVALS_PER_REQUEST = 64
"""Where a run that does not end is cut off."""

POLICY = HEURISTICS["join-shortest-queue"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A server and what it serves.

    Attributes:
      profile: the server.
      scheduler: its scheduler.
      draws: the workload, cut to the limits of the fleet that the server is in.
    """

    profile: StepProfile
    scheduler: str
    draws: Draws


def capacities(kinds: Sequence[Kind]) -> np.ndarray:
    """Requests per second that each server completes, to a few percent; `capacity.estimate_capacity` is exacter.

    Args:
      kinds: K servers; the slowest decides how long it takes.

    Returns:
      [K] float64.

    Raises:
      InputError: a request that cannot run, or a workload of which no rate can be taken.
    """
    samples = {id(kind.draws): kind.draws.sample(SAMPLE_REQUESTS, SEED) for kind in kinds}
    plans = [_plan(kind, samples[id(kind.draws)]) for kind in kinds]
    size = max(len(plan.table) for plan in plans)
    # Requests wait behind what runs, however long; the queue is as small as keeps every server busy.
    most_held = 2 * max(kind.profile.max_num_seqs for kind in kinds)
    sizes = [
        make_config([kind.profile], queue_capacity=most_held, dt=plan.dt)
        for kind, plan in zip(kinds, plans, strict=True)
    ]
    config = dataclasses.replace(
        make_config([kind.profile for kind in kinds], queue_capacity=most_held, dt=min(plan.dt for plan in plans)),
        max_steps_per_interval=max(each.max_steps_per_interval for each in sizes),
        records=True,
    )
    rates = np.zeros(len(kinds))
    left = list(range(len(kinds)))
    while left:
        rates[left] = _measure(config, [kinds[k] for k in left], [plans[k] for k in left], size)
        left = [k for k in left if rates[k] * plans[k].dt > MOST_SHARE]
        plans = [
            dataclasses.replace(plan, dt=SHARE_DISPATCHED / rates[k]) if k in left else plan
            for k, plan in enumerate(plans)
        ]
    return rates


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a server is measured: with which requests, at which router interval (seconds)."""

    table: RequestTable
    dt: float


def _plan(kind: Kind, many: RequestTable) -> _Plan:
    places = _places(kind.profile, many)
    count = max(FEWEST_REQUESTS, REQUESTS_PER_PLACE * places)
    dt = min(
        MOST_STEPS * kind.profile.shortest_step_ms / 1e3, SHARE_DISPATCHED / _rough_rate(kind.profile, many, places)
    )
    return _Plan(_typical(many, count), dt)


def _typical(many: RequestTable, count: int) -> RequestTable:
    """`count` requests, all at once, whose lengths are spread like those of many more."""
    by_length = np.lexsort((many.prompt_tokens, many.output_tokens))
    middles = ((np.arange(count) + 0.5) * len(many) / count).astype(np.int64)
    rows = np.random.default_rng(SEED).permutation(by_length[middles])
    return many.take(rows).replace(arrival_s=np.zeros(count))


def _places(profile: StepProfile, table: RequestTable) -> int:
    """Sequences that run at once: what the engine allows, or what the KV cache holds of half-done requests."""
    held = float(table.prompt_tokens.mean() + table.output_tokens.mean() / 2)
    return int(np.clip(profile.kv_tokens / held, 1, profile.max_num_seqs))


def _rough_rate(profile: StepProfile, table: RequestTable, places: int) -> float:
    """Requests per second of `places` sequences that decode together, each with its prefill on top."""
    prompt, output = float(table.prompt_tokens.mean()), float(table.output_tokens.mean())
    decode_ms = profile.step_ms([], [round(prompt + output / 2)] * places) * output
    prefill_ms = profile.step_ms([(round(prompt), 0)], []) - profile.step_ms([(1, 0)], [])
    return 1e3 * places / (decode_ms + places * prefill_ms)


def _measure(config: ClusterConfig, kinds: Sequence[Kind], plans: Sequence[_Plan], size: int) -> np.ndarray:
    """[K] completions per second."""
    fleets = [
        Fleet((kind.profile,), (kind.scheduler,), dt=plan.dt, queue_capacity=config.queue_capacity)
        for kind, plan in zip(kinds, plans, strict=True)
    ]
    for fleet, plan in zip(fleets, plans, strict=True):
        fleet.check(plan.table)
    params = stacked([fleet.params() for fleet in fleets])
    workloads = stacked(
        [to_device(plan.table, predict(plan.table, "none", seed=0), dt=plan.dt, size=size) for plan in plans]
    )
    lanes = jax.device_get(_run(config, params, workloads, most_intervals=INTERVALS_PER_REQUEST * size))
    rates = []
    for lane, (kind, plan) in enumerate(zip(kinds, plans, strict=True)):
        own = jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes.cluster)
        check_progress(jax.tree.map(lambda leaf: leaf[None], own), [POLICY.name], plan.table, config, plan.dt)
        rate = sustained_rate(records_of(own, plan.dt).finish_s[: len(plan.table)])
        if int(own.engines.finished.sum()) < len(plan.table) or not np.isfinite(rate):
            raise InputError(
                f"workload {kind.draws.name}: no rate can be taken on {kind.profile.name} ({kind.scheduler}); "
                "set workloads.rate"
            )
        rates.append(rate)
    return np.asarray(rates)


@partial(jax.jit, static_argnames=("config", "most_intervals"))
def _run(config: ClusterConfig, params: ClusterParams, workloads: Workload, *, most_intervals: int) -> Lane:
    """Lanes, [K] leaves, after the last request of each."""

    def start(params: ClusterParams, workload: Workload) -> Lane:
        return start_lane(config, params, workload, POLICY.initial_state(1), jax.random.key(0))

    def unfinished(lanes: Lane) -> jax.Array:
        done = jax.vmap(cluster.all_finished)(workloads, lanes.cluster)
        return ~jnp.all(done) & (lanes.cluster.now[0] < most_intervals)

    def advance(lanes: Lane) -> Lane:
        return jax.vmap(partial(interval, config, POLICY))(params, workloads, lanes)[0]

    return jax.lax.while_loop(unfinished, advance, jax.vmap(start)(params, workloads))


def stacked(trees: Sequence[Tree]) -> Tree:
    """Trees of one shape as one, with a leading axis on every leaf; on the host, where it compiles nothing."""
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves])), *trees)
