"""Derivatives of what clients feel (TTFT, E2E, TBT) with respect to everything continuous in a fleet.

    times, params, workload = differentiable_run(fleet, table, prediction, heuristic("least-kv"))
    gradient = jax.grad(lambda p: times(p, workload).mean_e2e_s, allow_int=True)(params)
    gradient.instances.step.W  # [I] seconds of mean E2E for each second of each server's W

Forward mode (`jax.jvp`, `jax.jacfwd`), reverse mode and `vmap` all go through the simulation itself. They are
*pathwise*: which request is in which engine step is decided by the forward run and is a constant to them, and with that
order fixed a token's time is a sum of step times, smooth in the coefficients. A derivative is exact for changes so
small that no event changes places with another, and blind to what happens when one does. In a server that is never
idle this makes derivatives of latencies far too large: with `anchored`, a request stays at its place within the step in
which it was dispatched, not at its time, and they are of use (see `jaxroute.cluster.replay`).
`jaxroute/calibrate/README.md` lists what is exact, what is zero, and what was measured of the difference.

How it stays cheap: integers carry no derivative, so what reverse mode has to keep of an interval is the arithmetic of
the clock and of the step times, and none of the queues. `segment` trades that memory for a second forward run.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxroute.cluster import clock, fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.queue import positions
from jaxroute.cluster.state import ClusterState
from jaxroute.cluster.view import router_view
from jaxroute.policies.protocol import Policy
from jaxroute.progress import check_progress
from jaxroute.rollout import Lane, run_intervals, stack_lanes, start_lane
from jaxroute.simulate import Fleet
from jaxroute.types import ClusterParams, Time, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.table import RequestTable

SEGMENT = 512
"""Router intervals that are computed again at a time in the backward pass of a run with `segment`."""


class RequestTimes(struct.PyTreeNode):
    """What the clients of N requests saw, in seconds; the times carry derivatives, the rest does not.

    Attributes:
      ttft_s: [N] float32, from arrival to the first token; 0 where the request has not finished.
      e2e_s: [N] float32, from arrival to the last token, likewise.
      tbt_mean_s: [N] float32, mean time between two tokens; 0 for a request of one token.
      finished: [N] bool.
      several: [N] bool, finished ones of more than one token.
    """

    ttft_s: jax.Array
    e2e_s: jax.Array
    tbt_mean_s: jax.Array
    finished: jax.Array
    several: jax.Array

    @property
    def mean_ttft_s(self) -> jax.Array:
        """[] float32."""
        return _mean(self.ttft_s, self.finished)

    @property
    def mean_e2e_s(self) -> jax.Array:
        """[] float32."""
        return _mean(self.e2e_s, self.finished)

    @property
    def mean_tbt_s(self) -> jax.Array:
        """[] float32, over the requests of more than one token."""
        return _mean(self.tbt_mean_s, self.several)


@dataclasses.dataclass(frozen=True)
class DifferentiableRun:
    """A run as a function of its parameters and of its requests' arrivals; jit it, differentiate it, vmap it.

    Attributes:
      config: static sizes.
      policy: decides.
      instances: I.
      seed: of the policy's random choices.
      length: T, router intervals that it runs for.
      anchored, segment: see `differentiable_run`.
    """

    config: ClusterConfig
    policy: Policy
    instances: int
    seed: int
    length: int
    anchored: bool
    segment: int | None

    def __call__(self, params: ClusterParams, workload: Workload) -> RequestTimes:
        """What the clients see."""
        states, key = self.policy.initial_state(self.instances), jax.random.key(self.seed)
        lane = start_lane(self.config, params, workload, states, key)
        how = {"length": self.length, "anchored": self.anchored, "segment": self.segment}
        return request_times(self.config, self.policy, params, workload, lane, **how)  # type: ignore[arg-type]


def differentiable_run(
    servers: Fleet,
    table: RequestTable,
    prediction: Prediction,
    policy: Policy,
    *,
    seed: int = 0,
    anchored: bool = False,
    segment: int | None = None,
    slack: float = 1.1,
) -> tuple[DifferentiableRun, ClusterParams, Workload]:
    """A simulation as a differentiable function, at the parameters and requests that it is to be evaluated at.

    Args:
      servers: the fleet.
      table: the requests.
      prediction: what the router is told of their output lengths.
      policy: decides; what it decides is a constant to the derivative.
      seed: of its random choices.
      anchored: whether the derivatives are the anchored ones instead of the pathwise ones.
      segment: router intervals of which the backward pass keeps nothing but the state before them, and which it
        computes again; None keeps the clock's arithmetic of all of them.
      slack: the function runs this many times as long as it takes at the present parameters, so that it also ends at
        slower ones; see `RequestTimes.finished`.

    Raises:
      InputError: as `jaxroute.simulate.simulate`.
    """
    servers.check(table)
    params = servers.params()
    workload = to_device(table, prediction, dt=servers.dt, ageing=servers.ageing, spf_edges=servers.spf_edges)
    config = dataclasses.replace(servers.config(len(table), records=True), fixed_steps=True)
    needed = _intervals_needed(servers, table, policy, params, workload, seed)
    piece = segment or SEGMENT
    length = math.ceil(slack * needed / piece) * piece

    times = DifferentiableRun(config, policy, len(servers.profiles), seed, length, anchored, segment)
    return times, params, workload


def request_times(
    config: ClusterConfig,
    policy: Policy,
    params: ClusterParams,
    workload: Workload,
    lane: Lane,
    *,
    length: int,
    anchored: bool = False,
    segment: int | None = None,
) -> RequestTimes:
    """Runs one lane for `length` intervals; differentiable in `params` and in `workload.arrival.offset`.

    The other floats of a workload and all of a lane are constants.

    Args:
      config: static sizes, with `records` and `fixed_steps`.
      policy: decides.
      params: the fleet.
      workload: the requests.
      lane: the simulation at its start.
      length: T, router intervals, a multiple of `segment`.
      anchored, segment: as in `differentiable_run`.

    Raises:
      ValueError: a configuration without records or fixed steps, or a length that is no multiple.
    """
    if not (config.records and config.fixed_steps):
        raise ValueError("derivatives need a configuration with records and fixed_steps")
    if segment is not None and length % segment:
        raise ValueError(f"length {length} is no multiple of segment {segment}")

    def one(now: Lane, _: None) -> tuple[Lane, tuple[jax.Array, jax.Array]]:
        return _interval(config, policy, params, workload, now)

    if segment is None:
        lane, trace = jax.lax.scan(one, lane, None, length=length)
    else:
        piece = jax.checkpoint(lambda now, _: jax.lax.scan(one, now, None, length=segment), prevent_cse=False)
        lane, trace = jax.lax.scan(piece, lane, None, length=length // segment)
        trace = jax.tree.map(lambda leaf: leaf.reshape(length, *leaf.shape[2:]), trace)
    ended, drift = trace
    return _times_of(params, workload, lane.cluster, ended, drift if anchored else jnp.zeros_like(drift))


def _interval(
    config: ClusterConfig, policy: Policy, params: ClusterParams, workload: Workload, lane: Lane
) -> tuple[Lane, tuple[jax.Array, jax.Array]]:
    """One router interval; decisions are constants.

    Also the ends of the engine steps in it, [I, K], and the drift of each engine's clock at its start, [I].
    """
    before = lane.cluster
    view = jax.lax.stop_gradient(router_view(config, params, workload, before))
    action, state = policy.act(lane.policy, view, jax.random.fold_in(lane.key, before.now))
    cluster, log = fleet.step(config, params, workload, before, action)
    if log is None or log.ended_offset is None:
        raise ValueError("the run kept no ends of engine steps")
    step = before.engines.step
    own = jax.vmap(lambda began, end: clock.drift(clock.at_step(before.now), began, end, params.dt))(
        step.began, step.end
    )
    return lane.replace(cluster=cluster, policy=state), (log.ended_offset, jnp.where(step.busy, own, 0))


def _times_of(
    params: ClusterParams, workload: Workload, cluster: ClusterState, ended: jax.Array, drift: jax.Array
) -> RequestTimes:
    book = cluster.engines.ledger
    if book is None or cluster.instance is None or cluster.dispatch_step is None:
        raise ValueError("the run kept no records")
    rows = jnp.arange(workload.prompt_tokens.shape[0])
    instance = jnp.maximum(cluster.instance, 0)

    def seconds(stamp: Time) -> jax.Array:
        own = Time(step=stamp.step[instance, rows], offset=stamp.offset[instance, rows])
        return clock.seconds_between(workload.arrival, _with_derivative(own, instance, ended), params.dt)

    finish_step = book.requests.last.step[instance, rows]
    left = (cluster.instance >= 0) & (finish_step >= 0) & ~_is_here(workload, cluster)
    moved = drift[jnp.maximum(cluster.dispatch_step, 0), instance]
    constant = params.instances.frontend_s[instance] - moved
    first_s, last_s = seconds(book.requests.first), seconds(book.requests.last)
    gaps = (workload.output_tokens - 1).astype(jnp.float32)
    several = left & (workload.output_tokens > 1)
    return RequestTimes(
        ttft_s=jnp.where(left, first_s + constant, 0),
        e2e_s=jnp.where(left, last_s + constant, 0),
        tbt_mean_s=jnp.where(several, (last_s - first_s) / jnp.maximum(gaps, 1), 0),
        finished=left,
        several=several,
    )


def _is_here(workload: Workload, cluster: ClusterState) -> jax.Array:
    """[N] bool, requests that run or wait at an instance; preempted ones have times in the ledger already."""
    engines, requests = cluster.engines, workload.prompt_tokens.shape[0]
    waits = jax.vmap(lambda queue: positions(queue) < queue.count)(engines.queue)
    here = jnp.where(engines.slots.order >= 0, engines.slots.request, requests).ravel()
    there = jnp.where(waits, engines.queue.request, requests).ravel()
    nowhere = jnp.zeros(requests, jnp.bool_)
    return nowhere.at[here].set(True, mode="drop").at[there].set(True, mode="drop")


def _with_derivative(stamp: Time, instance: jax.Array, ended: jax.Array) -> Time:
    """[N] times with the derivative of the engine step that ended then.

    Args:
      stamp: [N] ends of engine steps.
      instance: [N] int32, whose.
      ended: [T, I, K] float32, offsets of all ends.
    """
    rows = ended[jnp.clip(stamp.step, 0, ended.shape[0] - 1), instance]
    matches = (rows == stamp.offset[:, None]).astype(jnp.float32)
    share = matches / jnp.maximum(jnp.sum(matches, axis=1, keepdims=True), 1)
    # Adds nothing but the derivative.
    change = jnp.sum(share * (rows - jax.lax.stop_gradient(rows)), axis=1)
    return stamp.replace(offset=stamp.offset + change)


def _intervals_needed(
    servers: Fleet, table: RequestTable, policy: Policy, params: ClusterParams, workload: Workload, seed: int
) -> int:
    """Router intervals up to the last finish."""
    config = servers.config(len(table), records=True)
    lane = start_lane(config, params, workload, policy.initial_state(len(servers.profiles)), jax.random.key(seed))
    lanes = stack_lanes(lane, 1)
    while True:
        lanes, _ = run_intervals(config, policy, params, workload, lanes, length=SEGMENT)
        check_progress(lanes.cluster, [policy.name], table, config, servers.dt)
        if int(np.asarray(lanes.cluster.engines.finished).sum()) == len(table):
            return int(np.asarray(lanes.cluster.engines.ledger.requests.last.step).max()) + 1


def _mean(values: jax.Array, wanted: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(wanted, values, 0)) / jnp.maximum(jnp.sum(wanted.astype(jnp.float32)), 1)
