"""One relaxed instance at the border of an engine step: finish, schedule, execute; pure functions, vmapped over I.

A copy is treated as whole in its own question (do I fit?) and the copies before it by their weights. With weights of 0
and 1 that is the engine's own rule for those of weight 1, whom the others cannot disturb; a copy of weight 0 lives
through what the request would have lived through there. The rules are those of `cluster`, as prefix sums in the order
of the rows: whoever is kept out keeps out all behind it, because what it asks for counts for them as well.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.cluster.config import Scheduler
from jaxroute.relaxed.state import (
    BY_BLOCKS,
    BY_SEQS,
    DECODING,
    GONE,
    NOT_BLOCKED,
    PREFILLING,
    WAITING,
    Copies,
    Engine,
    Rows,
)
from jaxroute.relaxed.work import Derivative, Marginal, StepTime, prefill_time, present, step_time, whole_sums
from jaxroute.types import InstanceParams, Interval, Time

RATE_MEMORY_S = 5.0
"""Seconds over which the rate of releases is averaged."""

DRIFT_SHARE = 0.25
"""Share of the KV cache over whose releases their lateness is averaged."""

SLOWEST_TURNOVER_S = 60.0
"""Seconds for which a full instance releases everything at the least, for the derivative of a wait."""

REAL = 0.5
"""Weight from which on copies count as there where it is a matter of yes or no."""


class Ended(NamedTuple):
    """What finished at a border.

    Attributes:
      early_s: [] float32, weighted seconds from the finishes to the end of the interval.
      finished: [M] bool.
    """

    early_s: jax.Array
    finished: jax.Array


class Plan(NamedTuple):
    """What a step computes, [M] leaves.

    Attributes:
      decodes: bool, copies that decode.
      prefills: bool, copies that prefill.
      admitted: bool, those of them that were waiting.
      preempted: bool, copies that go back to the queue.
      chunk: float32, tokens computed.
      delay_s: float32, zero with a derivative: what the wait of an admitted copy depends on.
      blocked: int32, what kept a waiting copy out.
    """

    decodes: jax.Array
    prefills: jax.Array
    admitted: jax.Array
    preempted: jax.Array
    chunk: jax.Array
    delay_s: jax.Array
    blocked: jax.Array


class Before(NamedTuple):
    """Weighted sums over the copies before each one, [M] float32.

    Attributes:
      computing: tokens that the running ones have left to compute.
      waiting: waiting requests.
      tokens: of those.
      blocks: for those tokens.
    """

    computing: jax.Array
    waiting: jax.Array
    tokens: jax.Array
    blocks: jax.Array


def border(
    params: InstanceParams, rows: Rows, engine: Engine, now: jax.Array, dt: Interval, derivative: Derivative
) -> tuple[Engine, Ended]:
    """Ends the step in progress if it ends in interval `now`, and starts the next one if there is work.

    Args:
      params: the instance (every leaf []).
      rows: the requests.
      engine: the instance.
      now: [] int32.
      dt: the router interval.
      derivative: which one is carried.
    """
    ends = engine.busy & (engine.end.step <= now)
    start = clock.select(ends, engine.end, clock.at_step(now))
    start_rest = jnp.where(ends, engine.end_rest, 0)
    engine, ended = _finish(params, rows, engine, ends, dt)
    starts = ~engine.busy & jnp.any(engine.copies.stage != GONE)
    plan = _schedule(params, rows, engine, starts)
    return _execute(params, engine, plan, start, start_rest, starts, dt, derivative), ended


def used_blocks(params: InstanceParams, copies: Copies) -> jax.Array:
    """[] float32, KV blocks held by the running copies, the step in progress included."""
    held = blocks_of(copies.kv + copies.chunk, params)
    return jnp.sum(jnp.where(copies.stage >= PREFILLING, copies.weight * held, 0))


def blocks_of(tokens: jax.Array, params: InstanceParams) -> jax.Array:
    """Blocks that tokens fill, float32; exact as in `cluster.kv`, without a derivative."""
    size = params.block_size.astype(jnp.float32)
    return jax.lax.stop_gradient(jnp.floor((tokens + (size - 1) + 0.5) * (1 / size)))


def presence_of(weight: jax.Array, there: jax.Array, marginal: Marginal) -> jax.Array:
    """[] float32, how much of something is there to which the copies `there` ([M] bool) belong."""
    own = jnp.where(there, weight, 0)
    total = jnp.sum(own)
    if marginal is Marginal.TANGENT:
        return present(total)
    fixed = jax.lax.stop_gradient(own)
    sums = jnp.sum(fixed)
    secant = jnp.where(there, present(sums - fixed + 1) - present(sums - fixed), 0)
    return present(sums) + jnp.sum(secant * (own - fixed))


def _finish(params: InstanceParams, rows: Rows, engine: Engine, ends: jax.Array, dt: Interval) -> tuple[Engine, Ended]:
    copies = engine.copies
    kv = copies.kv + jnp.where(ends, copies.chunk, 0)
    completes = ends & (copies.chunk > 0) & (kv >= rows.prompt + copies.generated)
    generated = copies.generated + completes.astype(jnp.float32)
    finished = completes & (generated >= rows.output)
    late = copies.extra_s + copies.delay_s
    early = jnp.sum(jnp.where(finished, copies.weight * (dt.seconds - engine.end.offset - late), 0))
    stage = jnp.where(finished, GONE, jnp.where(completes, DECODING, copies.stage))
    finish = copies.finish
    if finish is not None:
        # Not below dt for copies of less weight: seconds are taken of it, and nothing else.
        finish = clock.select(finished, Time(step=engine.end.step, offset=engine.end.offset + late), finish)
    released = jnp.where(finished, jax.lax.stop_gradient(copies.weight) * blocks_of(kv, params), 0)
    engine = _with_rates(params, engine, released, finished, ends)
    left = copies.replace(
        stage=stage, kv=kv, generated=generated, chunk=jnp.where(ends, 0, copies.chunk), finish=finish
    )
    return engine.replace(busy=engine.busy & ~ends, copies=left), Ended(early, finished)


def _with_rates(
    params: InstanceParams, engine: Engine, released: jax.Array, finished: jax.Array, ends: jax.Array
) -> Engine:
    """The running means that the derivative of a wait is made of."""
    length = jnp.maximum(jax.lax.stop_gradient(engine.length_s), 1e-4)
    memory = jnp.where(ends, jnp.exp(-length / RATE_MEMORY_S), 1)
    fixed = jax.lax.stop_gradient(engine.copies.weight)
    blocks = jnp.sum(released)
    seqs = jnp.sum(jnp.where(finished, fixed, 0))
    mean_delay = jnp.sum(released * engine.copies.delay_s) / jnp.maximum(blocks, 1e-6)
    share = blocks / (blocks + DRIFT_SHARE * params.kv_blocks.astype(jnp.float32))
    queue = jnp.sum(jnp.where(engine.copies.stage == WAITING, fixed, 0))
    drift = engine.drift_s + share * (mean_delay - engine.drift_s)
    return engine.replace(
        block_rate=memory * engine.block_rate + (1 - memory) * blocks / length,
        seq_rate=memory * engine.seq_rate + (1 - memory) * seqs / length,
        # Nobody waits: the next queue knows nothing of this one.
        drift_s=jnp.where(queue >= REAL, drift, 0),
    )


def _schedule(params: InstanceParams, rows: Rows, engine: Engine, starts: jax.Array) -> Plan:
    """Chooses what the step computes, where `starts` ([] bool)."""
    copies = engine.copies
    weight = jax.lax.stop_gradient(copies.weight)
    is_prefill_first = params.scheduler == Scheduler.PREFILL_FIRST
    running, waits = copies.stage >= PREFILLING, copies.stage == WAITING
    known = rows.prompt + copies.generated
    left = known - copies.kv
    before = _before(params, copies, running, waits, known, left)

    # Prefill-first admits before it looks at the running requests; if anything whole was admitted, they pause.
    first = _admissible(params, engine, before, known, running, blocks_of(copies.kv, params), jnp.float32(0))
    first = _Admission(first.admitted & starts & is_prefill_first, first.delay_s, first.blocked)
    prefills_only = (jnp.sum(jnp.where(first.admitted, weight, 0)) >= 1) | (
        jnp.any(first.admitted) & ~jnp.any(copies.stage == DECODING)
    )

    decodes = starts & ~prefills_only
    budget = params.max_num_batched_tokens.astype(jnp.float32)
    chunk = jnp.where(running & decodes, jnp.clip(jnp.floor(budget - before.computing), 0, left), 0)
    blocks = blocks_of(copies.kv + chunk, params)
    held = jnp.where(running, weight * blocks, 0)
    survives = _exclusive_sum(held) + blocks <= params.kv_blocks.astype(jnp.float32)
    preempted = running & decodes & ~survives
    stays = running & survives & decodes
    chunk = jnp.where(stays, chunk, 0)

    spent = jnp.sum(weight * chunk)
    then = _admissible(params, engine, before, known, stays, blocks, spent)
    allowed = starts & ~is_prefill_first & (jnp.sum(jnp.where(preempted, weight, 0)) < REAL)
    admitted = jnp.where(is_prefill_first, first.admitted, then.admitted & allowed)
    room = jnp.floor(jnp.maximum(budget - spent - before.tokens, 0))
    chunk = jnp.where(admitted, jnp.where(is_prefill_first, known, jnp.minimum(known, room)), chunk)
    refused = starts & waits & ~admitted
    blocked = jnp.where(is_prefill_first, first.blocked, then.blocked)
    return Plan(
        decodes=stays & (copies.stage == DECODING) & (chunk > 0),
        prefills=(stays & (copies.stage == PREFILLING) & (chunk > 0)) | admitted,
        admitted=admitted,
        preempted=preempted,
        chunk=chunk,
        delay_s=jnp.where(is_prefill_first, first.delay_s, then.delay_s),
        blocked=jnp.where(refused, blocked, copies.blocked),
    )


class _Admission(NamedTuple):
    """Attributes: admitted: [M] bool; delay_s: [M] float32; blocked: [M] int32. See `Plan`."""

    admitted: jax.Array
    delay_s: jax.Array
    blocked: jax.Array


def _admissible(
    params: InstanceParams,
    engine: Engine,
    before: Before,
    known: jax.Array,
    running: jax.Array,
    blocks: jax.Array,
    spent: jax.Array,
) -> _Admission:
    """Which waiting copies fit.

    Args:
      params: the instance.
      engine: its state.
      before: see `Before`.
      known: [M] float32, prompt and generated tokens.
      running: [M] bool, copies that keep their place.
      blocks: [M] float32, KV blocks that those hold with the step.
      spent: [] float32, tokens of the step's budget that are used.
    """
    copies = engine.copies
    is_prefill_first = params.scheduler == Scheduler.PREFILL_FIRST
    capacity, seqs = params.kv_blocks.astype(jnp.float32), params.max_num_seqs.astype(jnp.float32)
    watermark = jnp.where(is_prefill_first, params.kv_blocks // 100, 0).astype(jnp.float32)
    own = jnp.where(running, copies.weight, 0)
    ahead_seqs = jnp.sum(own) + before.waiting
    ahead_blocks = jnp.sum(own * blocks) + before.blocks
    has_seq = ahead_seqs + 1 <= seqs + 1e-3
    has_blocks = capacity - ahead_blocks - blocks_of(known, params) >= watermark - 1e-3
    room = params.max_num_batched_tokens.astype(jnp.float32) - spent - jax.lax.stop_gradient(before.tokens)
    least = jnp.where(params.scheduler == Scheduler.CHUNKED, 1, known)
    admitted = (copies.stage == WAITING) & has_seq & has_blocks & (room >= least)
    return _Admission(
        admitted=admitted,
        delay_s=_wait(params, engine, ahead_blocks, ahead_seqs),
        blocked=jnp.where(~has_blocks, BY_BLOCKS, jnp.where(~has_seq, BY_SEQS, NOT_BLOCKED)),
    )


def _wait(params: InstanceParams, engine: Engine, ahead_blocks: jax.Array, ahead_seqs: jax.Array) -> jax.Array:
    """[M] float32, zero: its derivative is that of the wait for a place by what is held ahead.

    A copy that found no place is admitted once as much has been released as it and those ahead ask for, at the rate at
    which it is; and releases are late by what those who hold the blocks had to wait themselves.
    """

    def slope(ahead: jax.Array, rate: jax.Array, capacity: jax.Array) -> jax.Array:
        rate = jnp.maximum(rate, capacity.astype(jnp.float32) / SLOWEST_TURNOVER_S)
        return (ahead - jax.lax.stop_gradient(ahead)) / jax.lax.stop_gradient(rate)

    by_blocks = slope(ahead_blocks, engine.block_rate, params.kv_blocks)
    by_seqs = slope(ahead_seqs, engine.seq_rate, params.max_num_seqs)
    reason = engine.copies.blocked
    direct = jnp.where(reason == BY_BLOCKS, by_blocks, jnp.where(reason == BY_SEQS, by_seqs, 0))
    return direct + jnp.where(reason == NOT_BLOCKED, 0, engine.drift_s)


def _before(
    params: InstanceParams,
    copies: Copies,
    running: jax.Array,
    waits: jax.Array,
    known: jax.Array,
    left: jax.Array,
) -> Before:
    queued = jnp.where(waits, copies.weight, 0)
    fixed = jax.lax.stop_gradient(copies.weight)
    return Before(
        computing=_exclusive_sum(jnp.where(running, fixed * left, 0)),
        waiting=_exclusive_sum(queued),
        tokens=_exclusive_sum(queued * known),
        blocks=_exclusive_sum(queued * blocks_of(known, params)),
    )


def _exclusive_sum(values: jax.Array) -> jax.Array:
    return jnp.cumsum(values) - values


def _execute(
    params: InstanceParams,
    engine: Engine,
    plan: Plan,
    start: Time,
    start_rest: jax.Array,
    starts: jax.Array,
    dt: Interval,
    derivative: Derivative,
) -> Engine:
    """Starts the step."""
    copies = engine.copies
    marginal = derivative.marginal
    time = _step_time(params, engine, plan, marginal)
    end, end_rest = clock.later(start, start_rest, time.seconds, time.rest, dt)
    takes_part = plan.decodes | plan.prefills
    busy = starts & jnp.any(takes_part)
    stage = jnp.where(plan.preempted, WAITING, jnp.where(plan.admitted, PREFILLING, copies.stage))
    waited = plan.admitted & (copies.blocked != NOT_BLOCKED)
    preemptions = copies.preemptions
    copies = copies.replace(
        stage=stage,
        kv=jnp.where(plan.preempted, 0, copies.kv),
        chunk=jnp.where(busy, plan.chunk, copies.chunk),
        extra_s=copies.extra_s + jnp.where(busy & takes_part, time.missing, 0),
        delay_s=jnp.where(waited, plan.delay_s, copies.delay_s) if derivative.waits else copies.delay_s,
        blocked=jnp.where(plan.preempted, BY_BLOCKS, jnp.where(plan.admitted, NOT_BLOCKED, plan.blocked)),
        preemptions=None if preemptions is None else preemptions + plan.preempted.astype(jnp.int32),
    )
    return engine.replace(
        copies=copies,
        busy=engine.busy | busy,
        end=clock.select(busy, end, engine.end),
        end_rest=jnp.where(busy, end_rest, engine.end_rest),
        length_s=jnp.where(busy, jax.lax.stop_gradient(time.seconds), engine.length_s),
        presence=jnp.where(busy, presence_of(copies.weight, takes_part, marginal), engine.presence),
    )


def _step_time(params: InstanceParams, engine: Engine, plan: Plan, marginal: Marginal) -> StepTime:
    """How long the step takes.

    Where prefill-first admits less than a whole request, its prefill costs those that decode a share of its time, and
    they decode in the same step: what a whole one would have taken is `missing` for the admitted alone.
    """
    copies = engine.copies
    nobody = jnp.zeros_like(plan.decodes)
    joint = step_time(params, whole_sums(plan.prefills, plan.decodes, plan.chunk, copies.kv), copies.weight, marginal)
    cost = prefill_time(params, whole_sums(plan.prefills, nobody, plan.chunk, copies.kv), copies.weight, marginal)
    decode = step_time(params, whole_sums(nobody, plan.decodes, plan.chunk, copies.kv), copies.weight, marginal)
    split = StepTime(
        seconds=cost.seconds + decode.seconds,
        rest=cost.rest + decode.rest,
        missing=jnp.where(plan.admitted, cost.missing - decode.seconds, decode.missing),
    )
    whole = jnp.sum(jnp.where(plan.admitted, jax.lax.stop_gradient(copies.weight), 0)) >= 1
    # A prefill-only step: its cost is its time, and so is that of one copy less.
    alone = StepTime(cost.seconds, cost.rest, cost.missing)
    is_split = jnp.any(plan.admitted) & jnp.any(plan.decodes)
    use_cost = (params.scheduler == Scheduler.PREFILL_FIRST) & jnp.any(plan.admitted)
    special = jax.tree.map(lambda one, other: jnp.where(is_split, one, other), split, alone)
    return jax.tree.map(lambda one, other: jnp.where(use_cost & (is_split | whole), one, other), special, joint)
