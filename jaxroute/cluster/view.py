"""What the router can know of the fleet: its own dispatches and streams, and the metrics it last scraped."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.fleet import is_full
from jaxroute.cluster.own_load import own_load
from jaxroute.cluster.queue import positions, predicted_left
from jaxroute.cluster.router_queue import acting, head_of, sent_by_router, waiting_at_router
from jaxroute.cluster.slots import true_left
from jaxroute.cluster.state import ClusterState, EngineState
from jaxroute.types import NEVER, ClusterParams, RouterView, Time, Workload


def router_view(config: ClusterConfig, params: ClusterParams, workload: Workload, state: ClusterState) -> RouterView:
    """The view at the start of interval `state.now`.

    Every field is a count of what the router itself sent and saw stream back, a prediction it was given, or a scraped
    metric of a known age. True output lengths enter only through what has already been streamed.
    """
    engines = state.engines
    head = head_of(workload, state)
    queue_length = waiting_at_router(state)
    has_head = queue_length > 0
    arrival = Time(step=workload.arrival.step[head], offset=workload.arrival.offset[head])
    head_wait = clock.seconds_between(arrival, clock.at_step(state.now), params.dt)
    whole = RouterView(
        now=state.now,
        dt=params.dt.seconds,
        queue_length=queue_length,
        head_prompt_tokens=jnp.where(has_head, workload.prompt_tokens[head], 0),
        head_predicted_bucket=jnp.where(has_head, workload.predicted_bucket[head], 0),
        head_predicted_tokens=jnp.where(has_head, workload.predicted_tokens[head], 0),
        head_predicted_upper=jnp.where(has_head, workload.predicted_upper[head], 0),
        head_wait=jnp.where(has_head, head_wait, 0),
        dispatched=state.dispatched,
        in_flight=engines.running + engines.queue.count,
        in_flight_tokens=engines.in_flight_tokens,
        awaiting_first=engines.awaiting_first,
        awaiting_prompt_tokens=engines.awaiting_prompt_tokens,
        predicted_tokens_left=jax.vmap(_predicted_tokens_left)(engines),
        full=is_full(config, engines),
        kv_tokens=params.instances.kv_blocks * params.instances.block_size,
        profile=params.instances,
        scraped_running=state.scrape.running,
        scraped_waiting=state.scrape.waiting,
        scraped_kv_usage=state.scrape.kv_usage,
        scraped_age=(state.now - state.scrape.step).astype(jnp.float32) * params.dt.seconds,
        least_predicted_left=jax.vmap(_least_predicted_left, in_axes=(0, None))(engines, workload),
        awaiting_by_bucket=None if engines.buckets is None else engines.buckets.awaiting,
        streaming_by_bucket=None if engines.buckets is None else engines.buckets.streaming,
    )
    return whole if config.routers == 1 else _of_one_router(config, workload, state, whole)


def _of_one_router(config: ClusterConfig, workload: Workload, state: ClusterState, whole: RouterView) -> RouterView:
    """The view of the router whose turn it is: of the requests in flight, its own."""
    router, routers = acting(state)
    own = jax.vmap(partial(own_load, config, workload, router))(state.engines)
    counts = config.buckets > 0
    return whole.replace(
        now=state.now // routers,
        dt=whole.dt * routers,
        dispatched=sent_by_router(state),
        in_flight=own.in_flight,
        in_flight_tokens=own.tokens,
        awaiting_first=own.awaiting,
        awaiting_prompt_tokens=own.awaiting_prompt_tokens,
        predicted_tokens_left=own.predicted_tokens_left,
        least_predicted_left=own.least_predicted_left,
        awaiting_by_bucket=own.awaiting_by_bucket if counts else None,
        streaming_by_bucket=own.streaming_by_bucket if counts else None,
        router=router,
    )


def _predicted_tokens_left(engine: EngineState) -> jax.Array:
    """Sum over the requests of one instance of predicted less streamed tokens, no term below 0."""
    terms = jnp.where(engine.slots.order >= 0, jnp.maximum(true_left(engine) + engine.slots.bias, 0), 0)
    return jnp.sum(terms, dtype=jnp.int32) + engine.queue.predicted_left


def _least_predicted_left(engine: EngineState, workload: Workload) -> jax.Array:
    """The fewest predicted tokens left of a request that has begun to stream; 0 where none has.

    A preempted request counts as well: all that the router sees of the preemption is a pause.
    """
    slots, queue = engine.slots, engine.queue
    left = true_left(engine)
    streams = (slots.order >= 0) & (left < workload.output_tokens[slots.request])
    running = jnp.min(jnp.where(streams, jnp.maximum(left + slots.bias, 0), NEVER))
    paused = (positions(queue) < queue.count) & (queue.generated > 0)
    waiting = jnp.min(jnp.where(paused, predicted_left(workload, queue.request, queue.generated), NEVER))
    least = jnp.minimum(running, waiting)
    return jnp.where(least == NEVER, 0, least)
