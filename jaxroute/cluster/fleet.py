"""The fleet and its router's clock: one interval = dispatch, then every engine on its own up to the next action."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster.bucket_counts import dispatched
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.engine import advance, idle_engine
from jaxroute.cluster.queue import insert
from jaxroute.cluster.router_queue import empty_router_queue, head_of, leave, receive, waiting_at_router
from jaxroute.cluster.state import ClusterState, EngineState, Scrape, StepLog
from jaxroute.types import EMPTY, ClusterParams, InstanceParams, Workload


def initial_state(config: ClusterConfig, params: ClusterParams, workload: Workload) -> ClusterState:
    """An idle fleet at the start of interval 0, with the requests that have arrived by then at the router."""
    instances, requests = params.instances.kv_blocks.shape[0], workload.prompt_tokens.shape[0]
    engine = idle_engine(config, requests)
    engines = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (instances, *leaf.shape)), engine)
    nobody = jnp.full(requests, EMPTY, jnp.int32) if config.records else None
    state = ClusterState(
        now=jnp.int32(0),
        arrived=jnp.int32(0),
        dispatched=jnp.int32(0),
        held=empty_router_queue(config, requests),
        engines=engines,
        scrape=_read_metrics(params.instances, engines, jnp.int32(0)),
        instance=nobody,
        dispatch_step=nobody,
        sent=jnp.zeros(config.routers, jnp.int32) if config.routers > 1 else None,
    )
    return receive(workload, state)


def step(
    config: ClusterConfig, params: ClusterParams, workload: Workload, state: ClusterState, action: jax.Array
) -> tuple[ClusterState, StepLog | None]:
    """One router interval: the action at its start, then the engines up to the next one.

    Args:
      config: static sizes.
      params: the fleet.
      workload: the requests.
      state: at the start of the interval.
      action: [] int32, instance for the head of the router queue; I (or an empty queue) holds.

    Returns:
      The state at the start of the next interval; the engine steps ([I, K] leaves) where records are kept.
    """
    state = dispatch(config, workload, state, action)
    run_engine = jax.vmap(lambda instance, engine: advance(config, instance, workload, engine, state.now, params.dt))
    engines, log = run_engine(params.instances, state.engines)
    state = receive(workload, state.replace(engines=engines, now=state.now + 1))
    fresh = _read_metrics(params.instances, state.engines, state.now)
    due = state.now % params.scrape_period == 0
    scrape = jax.tree.map(lambda one, other: jnp.where(due, one, other), fresh, state.scrape)
    return state.replace(scrape=scrape), log


def dispatch(config: ClusterConfig, workload: Workload, state: ClusterState, action: jax.Array) -> ClusterState:
    """Sends the head of the router queue to instance `action`, if there is a head and such an instance."""
    requests = workload.prompt_tokens.shape[0]
    instances = state.engines.running.shape[0]
    head = head_of(workload, state)
    sends = (waiting_at_router(state) > 0) & (action >= 0) & (action < instances)
    wanted = sends & (jnp.arange(instances, dtype=jnp.int32) == action)
    engines = jax.vmap(lambda engine, here: receive_request(config, workload, engine, head, here))(
        state.engines, wanted
    )
    state = leave(state.replace(engines=engines), head, sends)
    if state.instance is None or state.dispatch_step is None:
        return state
    row = jnp.where(sends, head, requests)
    return state.replace(
        instance=state.instance.at[row].set(action, mode="drop"),
        dispatch_step=state.dispatch_step.at[row].set(state.now, mode="drop"),
    )


def is_full(config: ClusterConfig, engines: EngineState) -> jax.Array:
    """[I] bool, instances that hold as many requests as their queue has places: each could be preempted into it."""
    return engines.running + engines.queue.count >= config.queue_capacity


def all_finished(workload: Workload, state: ClusterState) -> jax.Array:
    """[] bool, whether every request of the workload has finished."""
    return jnp.sum(state.engines.finished, dtype=jnp.int32) >= workload.num_requests


def is_void(state: ClusterState) -> jax.Array:
    """[] bool, whether the run met something that the simulator cannot represent (see `EngineState`)."""
    engines = state.engines
    return jnp.any(engines.overflow | engines.stuck | engines.overrun)


def receive_request(
    config: ClusterConfig, workload: Workload, engine: EngineState, request: jax.Array, wanted: jax.Array
) -> EngineState:
    """The instance with a request that has just been sent to it, where `wanted` ([] bool)."""
    full = is_full(config, engine)
    taken = wanted & ~full
    one = taken.astype(jnp.int32)
    prompt_tokens = one * workload.prompt_tokens[request]
    return engine.replace(
        queue=insert(engine.queue, workload, request, taken, config.batching),
        in_flight_tokens=engine.in_flight_tokens + prompt_tokens,
        awaiting_first=engine.awaiting_first + one,
        awaiting_prompt_tokens=engine.awaiting_prompt_tokens + prompt_tokens,
        overflow=engine.overflow | (wanted & full),
        buckets=dispatched(engine.buckets, workload, request, taken),
    )


def _read_metrics(instances: InstanceParams, engines: EngineState, now: jax.Array) -> Scrape:
    usage = engines.used_blocks.astype(jnp.float32) / instances.kv_blocks.astype(jnp.float32)
    return Scrape(step=now, running=engines.running, waiting=engines.queue.count, kv_usage=usage)
