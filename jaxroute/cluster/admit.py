"""Admission of waiting requests to the step that is being scheduled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import ledger
from jaxroute.cluster.bucket_counts import yields_first
from jaxroute.cluster.config import Batching, ClusterConfig, Scheduler
from jaxroute.cluster.kv import blocks_for
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.queue import place_of, positions, remove
from jaxroute.cluster.slots import first_index, join_decode
from jaxroute.cluster.state import EngineState, PartialPrefill
from jaxroute.types import InstanceParams, Time, Workload


class Admission(struct.PyTreeNode):
    """What the admissions to one step add up to.

    Attributes:
      budget: [] int32, tokens that are left of the step's budget.
      count: [] int32, requests admitted.
      tokens: [] int32, prompt tokens that they compute in the step.
      squares: [] float32, sum of the squares of those, request by request.
      first_tokens: [] int32, how many of them yield their first token.
      first_prompt_tokens: [] int32, prompt tokens of those.
    """

    budget: jax.Array
    count: jax.Array
    tokens: jax.Array
    squares: jax.Array
    first_tokens: jax.Array
    first_prompt_tokens: jax.Array


class Candidate(struct.PyTreeNode):
    """The waiting request that is admitted next.

    Attributes:
      position: [] int32, in the waiting queue.
      known: [] int32, prompt and generated tokens.
      fits: [] bool, whether there is one and it can be admitted now.
    """

    position: jax.Array
    known: jax.Array
    fits: jax.Array


def can_admit(
    config: ClusterConfig, params: InstanceParams, workload: Workload, state: EngineState, budget: jax.Array
) -> jax.Array:
    """Whether a waiting request can be admitted now; [] bool."""
    return _next_candidate(config, params, workload, state, budget).fits


def admit(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    *,
    budget: jax.Array,
    decode_count: jax.Array,
    start: Time,
    allowed: jax.Array,
) -> tuple[EngineState, Admission]:
    """Admits waiting requests one after the other while they fit, where `allowed` ([] bool).

    Args:
      config: static sizes.
      params: the instance.
      workload: the requests.
      state: the instance, with the blocks of the running requests for this step in `used_blocks`.
      budget: [] int32, tokens that the step can still compute.
      decode_count: [] int32, `state.decode_count` after the step.
      start: when the step starts.
      allowed: [] bool.
    """
    zero = jnp.int32(0)
    nothing = Admission(
        budget=budget, count=zero, tokens=zero, squares=jnp.float32(0), first_tokens=zero, first_prompt_tokens=zero
    )

    def candidate(now: EngineState, sums: Admission) -> Candidate:
        found = _next_candidate(config, params, workload, now, sums.budget)
        return found.replace(fits=found.fits & allowed)

    Carry = tuple[EngineState, Admission, Candidate]

    def body(carry: Carry) -> Carry:
        now, sums, chosen = carry
        now, sums = _admit_one(config, params, workload, now, sums, chosen, decode_count, start)
        return now, sums, candidate(now, sums)

    first = candidate(state, nothing)
    state, sums, _ = repeat_while(lambda carry: carry[2].fits, body, (state, nothing, first))
    return state, sums


def _next_candidate(
    config: ClusterConfig, params: InstanceParams, workload: Workload, state: EngineState, budget: jax.Array
) -> Candidate:
    queue = state.queue
    first = place_of(queue, jnp.int32(0))
    head_known = _known_tokens(workload, queue.request[first], queue.generated[first])
    head_fits = (queue.count > 0) & _fits(params, state, budget, head_known)
    if config.batching is not Batching.BIN_PACKING:
        return Candidate(position=jnp.int32(0), known=head_known, fits=head_fits)
    # The largest that fits: the queue is in descending order, and those that do not fit are passed over.
    known = _known_tokens(workload, queue.request, queue.generated)
    position = positions(queue)
    eligible = (position < queue.count) & _fits(params, state, budget, known)
    place = first_index(jnp.roll(eligible, -queue.head))
    head_only = queue.preempted > 0
    chosen = jnp.where(head_only, 0, place)
    return Candidate(
        position=chosen,
        known=known[place_of(queue, jnp.minimum(chosen, known.shape[0] - 1))],
        fits=jnp.where(head_only, head_fits, jnp.any(eligible)),
    )


def _known_tokens(workload: Workload, request: jax.Array, generated: jax.Array) -> jax.Array:
    return workload.prompt_tokens[request] + generated


def _fits(params: InstanceParams, state: EngineState, budget: jax.Array, known: jax.Array) -> jax.Array:
    blocks = blocks_for(known, params.block_size)
    is_prefill_first = params.scheduler == Scheduler.PREFILL_FIRST
    watermark = jnp.where(is_prefill_first, params.kv_blocks // 100, 0)
    has_blocks = params.kv_blocks - state.used_blocks - blocks >= watermark
    least_tokens = jnp.where(params.scheduler == Scheduler.CHUNKED, 1, known)
    return (state.running < params.max_num_seqs) & has_blocks & (least_tokens <= budget)


def _admit_one(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    sums: Admission,
    chosen: Candidate,
    decode_count: jax.Array,
    start: Time,
) -> tuple[EngineState, Admission]:
    wanted = chosen.fits
    one = wanted.astype(jnp.int32)
    place = place_of(state.queue, chosen.position)
    request, generated = state.queue.request[place], state.queue.generated[place]
    output_left = workload.output_tokens[request] - generated
    chunk = jnp.minimum(chosen.known, sums.budget)
    whole = chunk == chosen.known
    # A request without a token yields its first one when its prefill completes, in this step or in a later one.
    first_prompt = jnp.where(generated == 0, chosen.known, 0)

    state, slot = _occupy(config, workload, state, request, wanted)
    state = state.replace(
        queue=remove(state.queue, workload, chosen.position, wanted, config.batching),
        used_blocks=state.used_blocks + one * blocks_for(chunk, params.block_size),
        ledger=ledger.load(state.ledger, slot, request, wanted, start),
        partial=_select_partial(
            wanted & ~whole,
            PartialPrefill(
                slot=slot,
                kv=chunk,
                left=chosen.known - chunk,
                output_left=output_left,
                first_prompt_tokens=first_prompt,
            ),
            state.partial,
        ),
    )
    state = join_decode(
        params,
        state,
        slot=slot,
        known_tokens=chosen.known,
        output_left=output_left,
        decode_count=decode_count,
        wanted=wanted & whole,
    )
    yields_one = wanted & whole & (first_prompt > 0)
    state = state.replace(buckets=yields_first(state.buckets, workload, request, yields_one))
    is_first = yields_one.astype(jnp.int32)
    squares = chunk.astype(jnp.float32) ** 2
    return state, Admission(
        budget=sums.budget - one * chunk,
        count=sums.count + one,
        tokens=sums.tokens + one * chunk,
        squares=sums.squares + jnp.where(wanted, squares, 0),
        first_tokens=sums.first_tokens + is_first,
        first_prompt_tokens=sums.first_prompt_tokens + is_first * first_prompt,
    )


def _occupy(
    config: ClusterConfig, workload: Workload, state: EngineState, request: jax.Array, wanted: jax.Array
) -> tuple[EngineState, jax.Array]:
    slots = state.slots
    slot = slots.free[state.running]
    target = jnp.where(wanted, slot, config.slots)
    order = (state.admissions << config.slot_bits) | slot
    bias = workload.predicted_tokens[request] - workload.output_tokens[request]
    one = wanted.astype(jnp.int32)
    state = state.replace(
        running=state.running + one,
        admissions=state.admissions + one,
        slots=slots.replace(
            request=slots.request.at[target].set(request, mode="drop"),
            order=slots.order.at[target].set(order, mode="drop"),
            bias=slots.bias.at[target].set(bias, mode="drop"),
        ),
    )
    return state, slot


def _select_partial(wanted: jax.Array, new: PartialPrefill, old: PartialPrefill) -> PartialPrefill:
    return jax.tree.map(lambda one, other: jnp.where(wanted, one, other), new, old)
