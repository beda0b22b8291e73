"""The relaxed fleet and its clock: one interval = dispatch with weights, then every engine on its own to the next."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.relaxed.engine import Ended, border, used_blocks
from jaxroute.relaxed.state import (
    GONE,
    NOT_BLOCKED,
    PREFILLING,
    WAITING,
    Engine,
    RelaxedState,
    Rows,
    Scraped,
    arrived_by,
)
from jaxroute.relaxed.work import MOVES, Derivative
from jaxroute.types import ClusterParams, InstanceParams, Interval, Time, Workload


def step(
    params: ClusterParams,
    workload: Workload,
    state: RelaxedState,
    weights: jax.Array,
    *,
    steps: int,
    derivative: Derivative = MOVES,
) -> tuple[RelaxedState, jax.Array]:
    """One router interval.

    Args:
      params: the fleet.
      workload: the requests.
      state: at the start of the interval.
      weights: [I] float32, with which the head of the router queue goes to each instance: they add up to 1, or are all
        0 to hold it. Without a head they mean nothing.
      steps: K, engine steps that an instance can start in an interval at the most (`ClusterConfig`).
      derivative: what the derivative by the weights takes in.

    Returns:
      The state at the start of the next interval, and the weighted seconds that all requests have spent in the system
      in this one ([] float32): over an episode it adds up to the total E2E latency.
    """
    state = dispatch(params, workload, state, weights)
    before = _in_system(state)
    run = partial(_advance, steps=steps, derivative=derivative)
    engines, early = jax.vmap(run, in_axes=(0, None, 0, None, None))(
        params.instances, state.rows, state.engines, state.now, params.dt
    )
    arrived = arrived_by(workload, state.now + 1)
    lead = workload.lead_s[arrived] - workload.lead_s[state.arrived]
    spent = before * params.dt.seconds + lead - jnp.sum(early)
    state = state.replace(engines=engines, now=state.now + 1, arrived=arrived)
    return _scrape(params, state), spent


def dispatch(params: ClusterParams, workload: Workload, state: RelaxedState, weights: jax.Array) -> RelaxedState:
    """Sends the head of the router queue to all instances, with weights, if there is a head and they are not all 0."""
    size = state.rows.request.shape[0]
    has_head = state.dispatched < state.arrived
    wanted = has_head & (jnp.sum(jax.lax.stop_gradient(weights)) > 0)
    sends = wanted & (state.used < size)
    request = jnp.minimum(state.dispatched, workload.prompt_tokens.shape[0] - 1)
    here = sends & (jnp.arange(size, dtype=jnp.int32) == state.used)
    facts = Rows(
        request=request,
        prompt=workload.prompt_tokens[request].astype(jnp.float32),
        output=workload.output_tokens[request].astype(jnp.float32),
        predicted=workload.predicted_tokens[request].astype(jnp.float32),
        arrival=jax.tree.map(lambda leaf: leaf[request], workload.arrival),
    )
    rows = jax.tree.map(lambda new, old: jnp.where(here, new, old), facts, state.rows)
    receive = partial(_receive, now=state.now, dt=params.dt, here=here, sends=sends)
    one = sends.astype(jnp.int32)
    return state.replace(
        rows=rows,
        engines=jax.vmap(receive)(state.engines, weights),
        dispatched=state.dispatched + one,
        used=state.used + one,
        overflow=state.overflow | (wanted & ~sends),
    )


def total_latency(state: RelaxedState, dt: Interval) -> tuple[jax.Array, jax.Array]:
    """E2E latencies of a finished run that kept records.

    Returns:
      [M] float32 seconds, the weighted latency of each row, and [I, M], that of each copy.
    """
    copies = state.engines.copies
    if copies.finish is None:
        raise ValueError("the run kept no records")
    arrival = jax.tree.map(lambda leaf: leaf[None], state.rows.arrival)
    each = clock.seconds_between(arrival, copies.finish, dt)
    each = jnp.where(copies.finish.step >= 0, each, 0)
    return jnp.sum(copies.weight * each, axis=0), each


def _receive(
    engine: Engine, weight: jax.Array, *, now: jax.Array, dt: Interval, here: jax.Array, sends: jax.Array
) -> Engine:
    """The engine with a copy in row `here` ([M] bool); a step that is not all there gives way to it."""
    copies = engine.copies

    def put(leaf: jax.Array, value: jax.Array | float | int) -> jax.Array:
        return jnp.where(here, jnp.asarray(value, leaf.dtype), leaf)

    copies = copies.replace(
        weight=jnp.where(here, weight, copies.weight),
        stage=put(copies.stage, WAITING),
        kv=put(copies.kv, 0),
        generated=put(copies.generated, 0),
        chunk=put(copies.chunk, 0),
        extra_s=put(copies.extra_s, 0),
        delay_s=put(copies.delay_s, 0),
        blocked=put(copies.blocked, NOT_BLOCKED),
    )
    left = clock.seconds_between(clock.at_step(now), engine.end, dt)
    share = weight * (1 - engine.presence)
    fixed = jax.lax.stop_gradient(share)
    sooner, rest = clock.later(clock.at_step(now), jnp.float32(0), (1 - share) * left, jnp.float32(0), dt)
    # Of a step that nothing is left of, the end keeps its derivative: what if it had been there?
    at_once = Time(step=now, offset=(1 - share) * jax.lax.stop_gradient(left))
    whole = fixed >= 1
    cut = sends & engine.busy & (fixed > 0) & (left > 0)
    end = clock.select(whole, at_once, sooner)
    return engine.replace(
        copies=copies,
        end=clock.select(cut, end, engine.end),
        end_rest=jnp.where(cut, jnp.where(whole, 0, rest), engine.end_rest),
    )


def _advance(
    params: InstanceParams,
    rows: Rows,
    engine: Engine,
    now: jax.Array,
    dt: Interval,
    *,
    steps: int,
    derivative: Derivative,
) -> tuple[Engine, jax.Array]:
    """One instance through an interval; also the weighted seconds from the finishes in it to its end."""

    def body(carry: Engine, _: None) -> tuple[Engine, Ended]:
        return border(params, rows, carry, now, dt, derivative)

    engine, ended = jax.lax.scan(body, engine, None, length=steps)
    # A copy of weight 0 that has finished is no longer in the system either.
    return engine, jnp.sum(ended.early_s)


def _in_system(state: RelaxedState) -> jax.Array:
    """[] float32, weighted requests that are at the router or at an instance."""
    copies = state.engines.copies
    there = jnp.sum(jnp.where(copies.stage != GONE, copies.weight, 0))
    return there + (state.arrived - state.dispatched).astype(jnp.float32)


def _scrape(params: ClusterParams, state: RelaxedState) -> RelaxedState:
    copies = state.engines.copies

    def count(there: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(there, copies.weight, 0), axis=1)

    used = jax.vmap(used_blocks)(params.instances, copies)
    fresh = Scraped(
        step=state.now,
        running=count(copies.stage >= PREFILLING),
        waiting=count(copies.stage == WAITING),
        kv_usage=used / params.instances.kv_blocks.astype(jnp.float32),
    )
    due = state.now % params.scrape_period == 0
    return state.replace(scraped=jax.tree.map(lambda new, old: jnp.where(due, new, old), fresh, state.scraped))
