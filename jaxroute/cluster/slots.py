"""The running requests of one instance: taking a slot, leaving it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster.kv import blocks_for, phase_of
from jaxroute.cluster.state import EngineState, Slots
from jaxroute.types import EMPTY, NEVER, InstanceParams


def empty_slots(count: int) -> Slots:
    """`count` free slots."""
    empty = jnp.full(count, EMPTY, jnp.int32)
    return Slots(
        request=empty,
        order=empty,
        kv_base=jnp.zeros(count, jnp.int32),
        finish_at=jnp.full(count, NEVER, jnp.int32),
        bias=jnp.zeros(count, jnp.int32),
        free=jnp.arange(count, dtype=jnp.int32),
    )


def first_index(flags: jax.Array) -> jax.Array:
    """[] int32, index of the first True; the length where there is none. (`argmax` is scalar code on CPU.)"""
    size = flags.shape[0]
    return jnp.min(jnp.where(flags, jnp.arange(size, dtype=jnp.int32), size))


def join_decode(
    params: InstanceParams,
    state: EngineState,
    *,
    slot: jax.Array,
    known_tokens: jax.Array,
    output_left: jax.Array,
    decode_count: jax.Array,
    wanted: jax.Array,
) -> EngineState:
    """Makes the request in `slot`, whose prefill the step now being scheduled completes, a decoding one.

    Args:
      params: the instance.
      state: the instance's state.
      slot: [] int32.
      known_tokens: prompt and generated tokens, all in the KV cache once the step has ended.
      output_left: output tokens to be yielded, the one of this step included.
      decode_count: `state.decode_count` after this step.
      wanted: [] bool, whether to do it at all.
    """
    target = jnp.where(wanted, slot, state.slots.order.shape[0])
    one = wanted.astype(jnp.int32)
    kv_base = known_tokens - decode_count
    finish_at = decode_count + output_left - 1
    return state.replace(
        slots=state.slots.replace(
            kv_base=state.slots.kv_base.at[target].set(kv_base, mode="drop"),
            finish_at=state.slots.finish_at.at[target].set(finish_at, mode="drop"),
        ),
        next_finish=jnp.where(wanted, jnp.minimum(state.next_finish, finish_at), state.next_finish),
        phases=state.phases.at[phase_of(kv_base, params.block_size)].add(one),
        context=state.context + one * (known_tokens + 1),
    )


def leave_decode(params: InstanceParams, state: EngineState, *, slot: jax.Array, wanted: jax.Array) -> EngineState:
    """Takes a decoding request out of its slot and frees its blocks, where `wanted`."""
    one = wanted.astype(jnp.int32)
    kv_base = state.slots.kv_base[slot]
    kv = kv_base + state.decode_count
    state = state.replace(
        used_blocks=state.used_blocks - one * blocks_for(kv, params.block_size),
        phases=state.phases.at[phase_of(kv_base, params.block_size)].add(-one),
        context=state.context - one * (kv + 1),
    )
    state = release(state, slot=slot, wanted=wanted)
    return state.replace(next_finish=jnp.min(state.slots.finish_at))


def release(state: EngineState, *, slot: jax.Array, wanted: jax.Array) -> EngineState:
    """Marks a slot free, where `wanted`."""
    slots = state.slots
    running = state.running - wanted.astype(jnp.int32)
    target = jnp.where(wanted, slot, slots.order.shape[0])
    return state.replace(
        running=running,
        slots=slots.replace(
            order=slots.order.at[target].set(EMPTY, mode="drop"),
            finish_at=slots.finish_at.at[target].set(NEVER, mode="drop"),
            free=slots.free.at[jnp.where(wanted, running, slots.order.shape[0])].set(slot, mode="drop"),
        ),
    )


def true_left(engine: EngineState) -> jax.Array:
    """[S] output tokens that have not been streamed yet; of a free slot, nothing meaningful."""
    slots = engine.slots
    slot = jnp.arange(slots.order.shape[0], dtype=jnp.int32)
    # The step in progress is already in `decode_count`, but its tokens have not been streamed yet.
    in_step = engine.step.busy & (engine.step.decodes | (slots.order >= engine.step.first_order))
    left = slots.finish_at - engine.decode_count + in_step.astype(jnp.int32)
    return jnp.where(slot == engine.partial.slot, engine.partial.output_left, left)
