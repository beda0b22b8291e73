"""What the router sees of a relaxed fleet: the counts of `cluster.view`, every request counting by its weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.relaxed.state import GONE, PREFILLING, WAITING, RelaxedState
from jaxroute.types import ClusterParams, RouterView, Workload


def relaxed_view(params: ClusterParams, workload: Workload, state: RelaxedState) -> RouterView:
    """The view at the start of interval `state.now`; counts of requests and tokens are float32 and differentiable.

    With weights of 0 and 1 it has the values of `router_view`, but for what only the paper's observation uses:
    `least_predicted_left` is 0 and there are no counts by bucket. No instance is ever full; where no row is free, none
    can take a request.
    """
    rows, copies = state.rows, state.engines.copies
    size = rows.request.shape[0]
    instances = copies.weight.shape[0]
    head = jnp.minimum(state.dispatched, workload.prompt_tokens.shape[0] - 1)
    has_head = state.dispatched < state.arrived
    there = copies.stage != GONE
    starts = there & (copies.generated == 0)
    prompt = jnp.broadcast_to(rows.prompt, there.shape)
    arrival = jax.tree.map(lambda leaf: leaf[head], workload.arrival)
    wait = clock.seconds_between(arrival, clock.at_step(state.now), params.dt)

    def total(where: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, copies.weight * values, 0), axis=1)

    def of_head(values: jax.Array) -> jax.Array:
        return jnp.where(has_head, values[head], 0)

    return RouterView(
        now=state.now,
        dt=params.dt.seconds,
        queue_length=state.arrived - state.dispatched,
        head_prompt_tokens=of_head(workload.prompt_tokens),
        head_predicted_bucket=of_head(workload.predicted_bucket),
        head_predicted_tokens=of_head(workload.predicted_tokens),
        head_predicted_upper=of_head(workload.predicted_upper),
        head_wait=jnp.where(has_head, wait, 0),
        dispatched=state.dispatched,
        in_flight=total(there, jnp.ones_like(prompt)),
        in_flight_tokens=total(there, prompt + copies.generated),
        awaiting_first=total(starts, jnp.ones_like(prompt)),
        awaiting_prompt_tokens=total(starts, prompt),
        predicted_tokens_left=total(there, jnp.maximum(rows.predicted[None] - copies.generated, 0)),
        full=jnp.broadcast_to(state.used >= size, (instances,)),
        kv_tokens=params.instances.kv_blocks * params.instances.block_size,
        profile=params.instances,
        scraped_running=state.scraped.running,
        scraped_waiting=state.scraped.waiting,
        scraped_kv_usage=state.scraped.kv_usage,
        scraped_age=(state.now - state.scraped.step).astype(jnp.float32) * params.dt.seconds,
        least_predicted_left=jnp.zeros(instances),
        awaiting_by_bucket=None,
        streaming_by_bucket=None,
    )


def backlog(params: ClusterParams, state: RelaxedState) -> jax.Array:
    """[I, 5] float32, the truth about each instance, for a critic; differentiable.

    Shares of the KV cache: true output tokens left of the running requests, of the waiting ones, tokens that the
    waiting ones ask for, blocks held; and the log of 1 + the waiting ones.
    """
    rows, copies = state.rows, state.engines.copies
    servers = params.instances
    capacity = (servers.kv_blocks * servers.block_size).astype(jnp.float32)
    left = rows.output[None] - copies.generated
    running, waits = copies.stage >= PREFILLING, copies.stage == WAITING

    def total(where: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(where, copies.weight * values, 0), axis=1) / capacity

    columns = (
        total(running, left),
        total(waits, left),
        total(waits, rows.prompt[None] + copies.generated),
        total(running, copies.kv + copies.chunk),
        jnp.log1p(total(waits, jnp.ones_like(left)) * capacity),
    )
    return jnp.stack(columns, axis=-1)
