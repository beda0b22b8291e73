"""One instance between two router actions: engine steps end and start at their own times, in continuous time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.cluster.admit import admit, can_admit
from jaxroute.cluster.bucket_counts import empty_counts, yields_first
from jaxroute.cluster.config import ClusterConfig, Scheduler
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.ledger import empty_ledger
from jaxroute.cluster.preempt import Demand, chunk_blocks, crossings, preempt_until_it_fits
from jaxroute.cluster.queue import empty_queue
from jaxroute.cluster.retire import end_step
from jaxroute.cluster.slots import empty_slots, join_decode
from jaxroute.cluster.state import EngineState, EngineStep, PartialPrefill, StepLog
from jaxroute.cluster.step_time import StepWork, step_time
from jaxroute.types import EMPTY, NEVER, InstanceParams, Interval, Time, Workload


def idle_engine(config: ClusterConfig, requests: int) -> EngineState:
    """An instance with nothing to do; `requests` is N, for the ledger."""
    zero, no = jnp.int32(0), jnp.bool_(False)
    step = EngineStep(
        busy=no,
        end=clock.at_step(zero),
        end_rest=jnp.float32(0),
        began=clock.at_step(zero) if config.fixed_steps else None,
        decodes=no,
        first_order=zero,
        admitted=zero,
        completed_slot=jnp.int32(EMPTY),
        emits=zero,
        first_tokens=zero,
        first_prompt_tokens=zero,
    )
    return EngineState(
        slots=empty_slots(config.slots),
        queue=empty_queue(config.queue_capacity),
        step=step,
        partial=PartialPrefill(slot=jnp.int32(EMPTY), kv=zero, left=zero, output_left=zero, first_prompt_tokens=zero),
        running=zero,
        decode_count=zero,
        next_finish=jnp.int32(NEVER),
        used_blocks=zero,
        phases=jnp.zeros(config.phases, jnp.int32),
        context=zero,
        admissions=zero,
        in_flight_tokens=zero,
        awaiting_first=zero,
        awaiting_prompt_tokens=zero,
        finished=zero,
        finished_early_s=jnp.float32(0),
        latency_steps=zero,
        late_steps=zero,
        preemptions=zero,
        recomputed_tokens=zero,
        overflow=no,
        stuck=no,
        overrun=no,
        buckets=empty_counts(config.buckets),
        ledger=empty_ledger(config.slots, requests) if config.records else None,
    )


def advance(
    config: ClusterConfig, params: InstanceParams, workload: Workload, state: EngineState, now: jax.Array, dt: Interval
) -> tuple[EngineState, StepLog | None]:
    """Runs one instance through the router interval `now`.

    Args:
      config: static sizes.
      params: the instance (every leaf []).
      workload: the requests.
      state: the instance at the start of the interval, the router's action applied.
      now: [] int32.
      dt: the router interval.

    Returns:
      The instance at the end of the interval, and its engine steps where records are kept.
    """
    log = _empty_log(config) if config.records else None
    Carry = tuple[jax.Array, EngineState, StepLog | None]

    def wanted(carry: Carry) -> jax.Array:
        count, engine, _ = carry
        return _has_event(engine, now) & (count < config.max_steps_per_interval)

    def body(carry: Carry) -> Carry:
        count, engine, steps = carry
        idle_start = _border(config, workload, engine, now)
        return count + 1, *engine_step(config, params, workload, engine, now, idle_start, dt, count, steps)

    start = (jnp.int32(0), state.replace(finished_early_s=jnp.zeros_like(state.finished_early_s)), log)
    if config.fixed_steps:
        _, state, log = jax.lax.scan(
            lambda carry, _: (body(carry), None), start, None, length=config.max_steps_per_interval
        )[0]
    else:
        _, state, log = repeat_while(wanted, body, start)
    return state.replace(overrun=state.overrun | _has_event(state, now)), log


def engine_step(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    now: jax.Array,
    idle_start: Time,
    dt: Interval,
    row: jax.Array,
    log: StepLog | None,
) -> tuple[EngineState, StepLog | None]:
    """Ends the step in progress if it ends in interval `now`, and starts the next: finish, schedule, execute.

    An instance to which nothing happens in the interval any more is left as it is. An idle one starts at `idle_start`;
    `row` is where the step goes in the log.
    """
    ends = state.step.busy & (state.step.end.step <= now)
    start = clock.select(ends, state.step.end, idle_start)
    start_rest = jnp.where(ends, state.step.end_rest, 0)
    log = _log_end(log, row, ends, state.step.end)
    in_progress, finished_early_s = state.step, state.finished_early_s
    if config.fixed_steps:
        # The clock carries derivatives; to the loops over requests, which reverse mode cannot pass, it is a constant.
        state = jax.lax.stop_gradient(state)
    finished_before = state.finished
    state = end_step(params, workload, state, ends, dt)
    finishes = (state.finished - finished_before).astype(jnp.float32)
    starts = ~state.step.busy & ~state.stuck & ((state.running > 0) | (state.queue.count > 0))
    state, step, work, preempted = _schedule(config, params, workload, state, jax.lax.stop_gradient(start), starts)
    duration, duration_rest = step_time(params, work)
    end, end_rest = clock.later(start, start_rest, duration, duration_rest, dt)
    step = step.replace(end=end, end_rest=end_rest, began=start if config.fixed_steps else None)
    in_progress = in_progress.replace(busy=in_progress.busy & ~ends)
    state = state.replace(
        step=jax.tree.map(lambda new, old: jnp.where(step.busy, new, old), step, in_progress),
        finished_early_s=finished_early_s + finishes * (dt.seconds - in_progress.end.offset),
        stuck=state.stuck | (starts & ~step.busy),
    )
    return state, _log_step(log, row, start, duration, step.busy, work, preempted)


def _border(config: ClusterConfig, workload: Workload, state: EngineState, now: jax.Array) -> Time:
    """The start of interval `now`, when an idle instance starts.

    Its derivative is that of the arrival which it starts for, as if the router acted at once and not at the next
    multiple of dt; that of a request that the router held is 0.
    """
    border = clock.at_step(now)
    if not config.fixed_steps:
        return border
    opener = state.queue.request[state.queue.head]
    arrival = jnp.where(workload.visible_step[opener] == now, workload.arrival.offset[opener], 0)
    return border.replace(offset=border.offset + (arrival - jax.lax.stop_gradient(arrival)))


def _schedule(
    config: ClusterConfig,
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    start: Time,
    starts: jax.Array,
) -> tuple[EngineState, EngineStep, StepWork, jax.Array]:
    """Chooses what the step that starts at `start` computes, where `starts` ([] bool).

    Prefill-first admits before it looks at the running requests; the other schedulers do the reverse.

    Returns:
      The state, the step (not busy where there is nothing to run; its end is not set yet), its work, and the number
      of requests preempted.
    """
    prefill_first = params.scheduler == Scheduler.PREFILL_FIRST
    prefills_only = prefill_first & can_admit(config, params, workload, state, params.max_num_batched_tokens)
    decodes = starts & ~prefills_only
    state, demand = preempt_until_it_fits(config, params, workload, state, _demand(params, state), decodes)
    decode_seqs, chunk = jnp.where(decodes, _decoding(state), 0), jnp.where(decodes, demand.chunk, 0)
    context, partial = jnp.where(decodes, state.context, 0), state.partial
    decode_count = state.decode_count + decodes.astype(jnp.int32)
    first_order = state.admissions << config.slot_bits
    state, completed = _compute_running(params, workload, state, demand, decodes, decode_count)
    state, admitted = admit(
        config,
        params,
        workload,
        state,
        budget=params.max_num_batched_tokens - decode_seqs - chunk,
        decode_count=decode_count,
        start=start,
        allowed=starts & (prefills_only | (~prefill_first & (demand.preempted == 0))),
    )
    chunk_float = chunk.astype(jnp.float32)
    work = StepWork(
        prefill_tokens=admitted.tokens + chunk,
        prefill_squares=admitted.squares + chunk_float**2,
        prefill_times_kv=chunk_float * partial.kv.astype(jnp.float32),
        decode_seqs=decode_seqs,
        context_tokens=context,
    )
    cut = (state.partial.slot >= 0) & (admitted.count > 0)
    first_prompt = jnp.where(completed, partial.first_prompt_tokens, 0)
    step = state.step.replace(
        busy=starts & (work.prefill_tokens + decode_seqs > 0),
        decodes=decodes,
        first_order=first_order,
        admitted=admitted.count,
        completed_slot=jnp.where(completed, partial.slot, EMPTY),
        emits=decode_seqs + completed.astype(jnp.int32) + admitted.count - cut.astype(jnp.int32),
        first_tokens=admitted.first_tokens + (first_prompt > 0).astype(jnp.int32),
        first_prompt_tokens=admitted.first_prompt_tokens + first_prompt,
    )
    return state.replace(decode_count=decode_count), step, work, demand.preempted


def _has_event(state: EngineState, now: jax.Array) -> jax.Array:
    ends = state.step.busy & (state.step.end.step <= now)
    return ends | (~state.step.busy & (state.queue.count > 0) & ~state.stuck)


def _decoding(state: EngineState) -> jax.Array:
    return state.running - (state.partial.slot >= 0).astype(jnp.int32)


def _demand(params: InstanceParams, state: EngineState) -> Demand:
    has_partial = state.partial.slot >= 0
    left_of_budget = params.max_num_batched_tokens - _decoding(state)
    chunk = jnp.where(has_partial, jnp.minimum(state.partial.left, left_of_budget), 0)
    return Demand(
        blocks=crossings(params, state, state.decode_count) + chunk_blocks(params, state, chunk),
        chunk=chunk,
        preempted=jnp.int32(0),
    )


def _compute_running(
    params: InstanceParams,
    workload: Workload,
    state: EngineState,
    demand: Demand,
    decodes: jax.Array,
    decode_count: jax.Array,
) -> tuple[EngineState, jax.Array]:
    """Computes the running requests' tokens; also says whether the partial prefill completes ([] bool)."""
    one = decodes.astype(jnp.int32)
    partial = state.partial
    completed = decodes & (partial.slot >= 0) & (demand.chunk == partial.left)
    known = partial.kv + partial.left
    request = state.slots.request[jnp.maximum(partial.slot, 0)]
    yields_one = completed & (partial.first_prompt_tokens > 0)
    state = state.replace(
        buckets=yields_first(state.buckets, workload, request, yields_one),
        used_blocks=state.used_blocks + one * demand.blocks,
        context=state.context + one * _decoding(state),
        partial=partial.replace(
            slot=jnp.where(completed, EMPTY, partial.slot),
            kv=partial.kv + one * demand.chunk,
            left=partial.left - one * demand.chunk,
        ),
    )
    state = join_decode(
        params,
        state,
        slot=jnp.maximum(partial.slot, 0),
        known_tokens=known,
        output_left=partial.output_left,
        decode_count=decode_count,
        wanted=completed,
    )
    return state, completed


def _empty_log(config: ClusterConfig) -> StepLog:
    rows = config.max_steps_per_interval
    return StepLog(
        start_offset=jnp.zeros(rows, jnp.float32),
        duration=jnp.zeros(rows, jnp.float32),
        prefill_tokens=jnp.zeros(rows, jnp.int32),
        decode_seqs=jnp.zeros(rows, jnp.int32),
        preemptions=jnp.zeros(rows, jnp.int32),
        ended_offset=jnp.full(rows, -1, jnp.float32) if config.fixed_steps else None,
    )


def _log_end(log: StepLog | None, row: jax.Array, ends: jax.Array, end: Time) -> StepLog | None:
    if log is None or log.ended_offset is None:
        return log
    target = jnp.where(ends, row, log.ended_offset.shape[0])
    return log.replace(ended_offset=log.ended_offset.at[target].set(end.offset, mode="drop"))


def _log_step(
    log: StepLog | None,
    row: jax.Array,
    start: Time,
    duration: jax.Array,
    runs: jax.Array,
    work: StepWork,
    preemptions: jax.Array,
) -> StepLog | None:
    if log is None:
        return None
    target = jnp.where(runs, row, log.duration.shape[0])
    entry = {
        "start_offset": start.offset,
        "duration": duration,
        "prefill_tokens": work.prefill_tokens,
        "decode_seqs": work.decode_seqs,
        "preemptions": preemptions,
    }
    return log.replace(**{name: getattr(log, name).at[target].set(value, mode="drop") for name, value in entry.items()})
