"""Preemption by recompute: while blocks lack, the request admitted last goes back to the front of the queue."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import ledger
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.kv import blocks_for
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.queue import push_front
from jaxroute.cluster.slots import leave_decode, release
from jaxroute.cluster.state import EngineState
from jaxroute.types import EMPTY, InstanceParams, Workload


class Demand(struct.PyTreeNode):
    """What the running requests want to compute in the step that is being scheduled.

    Attributes:
      blocks: [] int32, KV blocks that they need on top of those they hold.
      chunk: [] int32, tokens of the partial prefill.
      preempted: [] int32, requests preempted so far.
    """

    blocks: jax.Array
    chunk: jax.Array
    preempted: jax.Array


def crossings(params: InstanceParams, state: EngineState, decode_count: jax.Array) -> jax.Array:
    """Decoding sequences whose next token opens a new block: those whose KV tokens fill their blocks; int32."""
    return state.phases[jnp.mod(-decode_count, params.block_size)]


def chunk_blocks(params: InstanceParams, state: EngineState, chunk: jax.Array) -> jax.Array:
    """Blocks that the next `chunk` tokens of the partial prefill need; int32."""
    kv = state.partial.kv
    return blocks_for(kv + chunk, params.block_size) - blocks_for(kv, params.block_size)


def preempt_until_it_fits(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    demand: Demand,
    allowed: jax.Array,
) -> tuple[EngineState, Demand]:
    """Preempts the last admitted until the demand fits in the KV cache, where `allowed` ([] bool).

    The engine walks the running requests in order and preempts the last one whenever a block lacks. The walk ends
    with the longest prefix of them whose blocks after the step fit, so only the suffix has to be found.
    """

    def lacks(carry: tuple[EngineState, Demand]) -> jax.Array:
        now, wants = carry
        return allowed & (now.used_blocks + wants.blocks > params.kv_blocks) & (now.running > 0)

    def body(carry: tuple[EngineState, Demand]) -> tuple[EngineState, Demand]:
        return _preempt_last(config, params, workload, *carry, lacks(carry))

    return repeat_while(lacks, body, (state, demand))


def _preempt_last(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    demand: Demand,
    wanted: jax.Array,
) -> tuple[EngineState, Demand]:
    last = jnp.max(state.slots.order)
    slot = jnp.where(wanted, last & ((1 << config.slot_bits) - 1), 0)
    request = state.slots.request[slot]
    is_partial = slot == state.partial.slot
    kv = jnp.where(is_partial, state.partial.kv, state.slots.kv_base[slot] + state.decode_count)
    left = jnp.where(is_partial, state.partial.output_left, state.slots.finish_at[slot] - state.decode_count)
    one = wanted.astype(jnp.int32)

    crossed = crossings(params, state, state.decode_count)
    book = ledger.store(state.ledger, slot, request, wanted, decodes=~is_partial)
    state = state.replace(
        queue=push_front(state.queue, workload, request, workload.output_tokens[request] - left, wanted),
        preemptions=state.preemptions + one,
        recomputed_tokens=state.recomputed_tokens + one * kv,
        ledger=ledger.count_preemption(book, request, kv, wanted),
    )
    decoding, partial = wanted & ~is_partial, wanted & is_partial
    state = leave_decode(params, state, slot=slot, wanted=decoding)
    demand = Demand(
        blocks=demand.blocks
        - (crossed - crossings(params, state, state.decode_count))
        - partial.astype(jnp.int32) * chunk_blocks(params, state, demand.chunk),
        chunk=jnp.where(partial, 0, demand.chunk),
        preempted=demand.preempted + one,
    )
    return _drop_partial(params, state, slot, partial), demand


def _drop_partial(params: InstanceParams, state: EngineState, slot: jax.Array, wanted: jax.Array) -> EngineState:
    freed = wanted.astype(jnp.int32) * blocks_for(state.partial.kv, params.block_size)
    state = release(state, slot=slot, wanted=wanted)
    return state.replace(
        used_blocks=state.used_blocks - freed,
        partial=state.partial.replace(slot=jnp.where(wanted, EMPTY, state.partial.slot)),
    )
