"""The waiting queue of one instance: a ring of request ids."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster.config import Batching
from jaxroute.cluster.state import WaitingQueue
from jaxroute.types import EMPTY, Workload


def empty_queue(capacity: int) -> WaitingQueue:
    """A queue of `capacity` places with nothing in it."""
    zero = jnp.int32(0)
    return WaitingQueue(
        request=jnp.full(capacity, EMPTY, jnp.int32),
        generated=jnp.zeros(capacity, jnp.int32),
        head=zero,
        count=zero,
        preempted=zero,
        predicted_left=zero,
    )


def predicted_left(workload: Workload, request: jax.Array, generated: jax.Array) -> jax.Array:
    """Predicted output tokens that a request still has to yield, not below 0."""
    return jnp.maximum(workload.predicted_tokens[request] - generated, 0)


def place_of(queue: WaitingQueue, position: jax.Array) -> jax.Array:
    """Ring place of the entry at `position` (0 is the first; -1 the place before it)."""
    capacity = queue.request.shape[0]
    place = queue.head + position
    return jnp.where(place >= capacity, place - capacity, jnp.where(place < 0, place + capacity, place))


def push_front(
    queue: WaitingQueue, workload: Workload, request: jax.Array, generated: jax.Array, wanted: jax.Array
) -> WaitingQueue:
    """Puts a preempted request in front of all others, where `wanted` ([] bool)."""
    capacity = queue.request.shape[0]
    head = jnp.where(wanted, place_of(queue, jnp.int32(-1)), queue.head)
    target = jnp.where(wanted, head, capacity)
    one = wanted.astype(jnp.int32)
    return queue.replace(
        request=queue.request.at[target].set(request, mode="drop"),
        generated=queue.generated.at[target].set(generated, mode="drop"),
        head=head,
        count=queue.count + one,
        preempted=queue.preempted + one,
        predicted_left=queue.predicted_left + one * predicted_left(workload, request, generated),
    )


def insert(
    queue: WaitingQueue, workload: Workload, request: jax.Array, wanted: jax.Array, batching: Batching
) -> WaitingQueue:
    """Puts a new request in its place in the order, where `wanted`; the caller has seen that there is room."""
    one = wanted.astype(jnp.int32)
    if batching is Batching.FCFS:
        capacity = queue.request.shape[0]
        target = jnp.where(wanted, place_of(queue, queue.count), capacity)
        request_ring = queue.request.at[target].set(request, mode="drop")
        generated_ring = queue.generated.at[target].set(0, mode="drop")
    else:
        position = _ordered_position(queue, workload, request, batching)
        request_ring = _shift_in(queue, queue.request, position, request, wanted)
        generated_ring = _shift_in(queue, queue.generated, position, jnp.int32(0), wanted)
    return queue.replace(
        request=request_ring,
        generated=generated_ring,
        count=queue.count + one,
        predicted_left=queue.predicted_left + one * workload.predicted_tokens[request],
    )


def remove(
    queue: WaitingQueue, workload: Workload, position: jax.Array, wanted: jax.Array, batching: Batching
) -> WaitingQueue:
    """Takes the entry at `position` out, where `wanted`."""
    one = wanted.astype(jnp.int32)
    place = place_of(queue, position)
    gone = predicted_left(workload, queue.request[place], queue.generated[place])
    queue = queue.replace(
        count=queue.count - one,
        preempted=jnp.where(wanted, jnp.maximum(queue.preempted - 1, 0), queue.preempted),
        predicted_left=queue.predicted_left - one * gone,
    )
    if batching is Batching.BIN_PACKING:
        # The entries before it move one place back, so that the head moves on as in the other orders.
        queue = queue.replace(
            request=_shift_over(queue, queue.request, position, wanted),
            generated=_shift_over(queue, queue.generated, position, wanted),
        )
    return queue.replace(head=jnp.where(wanted, place_of(queue, jnp.int32(1)), queue.head))


def positions(queue: WaitingQueue) -> jax.Array:
    """[Q] position in the queue of each ring place; those from `count` on are empty places."""
    capacity = queue.request.shape[0]
    offset = jnp.arange(capacity, dtype=jnp.int32) - queue.head
    return jnp.where(offset < 0, offset + capacity, offset)


def _ordered_position(queue: WaitingQueue, workload: Workload, request: jax.Array, batching: Batching) -> jax.Array:
    """Where a new request goes: behind the preempted ones and all whose key is not larger."""
    sign = 1 if batching is Batching.LEAST_WORK_LEFT else -1
    key = sign * workload.output_tokens[request]
    keys = sign * workload.output_tokens[queue.request]
    position = positions(queue)
    before = (position < queue.preempted) | ((position < queue.count) & (keys <= key))
    return jnp.sum(before, dtype=jnp.int32)


def _shift_in(
    queue: WaitingQueue, ring: jax.Array, position: jax.Array, value: jax.Array, wanted: jax.Array
) -> jax.Array:
    here = positions(queue)
    shifted = jnp.where(here < position, ring, jnp.where(here == position, value, jnp.roll(ring, 1)))
    return jnp.where(wanted, shifted, ring)


def _shift_over(queue: WaitingQueue, ring: jax.Array, position: jax.Array, wanted: jax.Array) -> jax.Array:
    here = positions(queue)
    return jnp.where(wanted & (here <= position), jnp.roll(ring, 1), ring)
