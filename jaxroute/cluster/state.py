"""The state of a fleet: what its engines hold, and what its router has done so far.

Shapes are those of one fleet; `vmap` puts an axis in front. Axis letters as in `jaxroute.types`.
"""

from __future__ import annotations

import jax
from flax import struct

from jaxroute.types import Time


class Slots(struct.PyTreeNode):
    """The running requests of one instance, in no order.

    Every decoding sequence gains one token in every decode step, so the arrays hold what does not change then:
    with the instance's `decode_count`, a request's KV tokens are `kv_base + decode_count` and its output tokens
    left are `finish_at - decode_count`. A step without arrivals and departures touches no slot at all.

    Attributes:
      request: [S] int32, request id.
      order: [S] int32, admission number above, slot index in the low bits: the largest was admitted last; EMPTY in
        a free slot.
      kv_base: [S] int32, KV tokens less `decode_count`.
      finish_at: [S] int32, `decode_count` at which the last token is out (hidden from the router); NEVER in a free
        slot and while the prefill is partial.
      bias: [S] int32, predicted less true output tokens, so that left + bias is the predicted tokens left.
      free: [S] int32, slot indices; those from place `running` on are the free slots.
    """

    request: jax.Array
    order: jax.Array
    kv_base: jax.Array
    finish_at: jax.Array
    bias: jax.Array
    free: jax.Array


class WaitingQueue(struct.PyTreeNode):
    """An instance's own queue: a ring whose first `preempted` entries are resumed before any other is admitted.

    Attributes:
      request: [Q] int32, request ids.
      generated: [Q] int32, output tokens that the request had yielded when it was preempted.
      head: [] int32, place of the first entry.
      count: [] int32, entries.
      preempted: [] int32, entries at the front that were preempted.
      predicted_left: [] int32, predicted output tokens left of all entries.
    """

    request: jax.Array
    generated: jax.Array
    head: jax.Array
    count: jax.Array
    preempted: jax.Array
    predicted_left: jax.Array


class BucketCounts(struct.PyTreeNode):
    """Requests of one instance by predicted output-length bucket: the paper's P_t and D_t.

    Attributes:
      awaiting: [B] int32, dispatched, without a first token.
      streaming: [B] int32, with a first token, unfinished.
      first: [B] int32, those of `awaiting` whose first token the engine step in progress yields.
    """

    awaiting: jax.Array
    streaming: jax.Array
    first: jax.Array


class EngineStep(struct.PyTreeNode):
    """The engine step in progress at one instance.

    Attributes:
      busy: [] bool, whether there is one.
      end: Time [], when it ends.
      end_rest: [] float32, seconds that float32 rounded off `end`.
      began: Time [], when it started; None where no `fixed_steps` are run.
      decodes: [] bool, whether the sequences admitted before it decode in it.
      first_order: [] int32, the smallest `Slots.order` of a request that it admits.
      admitted: [] int32, requests that it admits: their slots are the last `admitted` of the taken ones in
        `Slots.free`.
      completed_slot: [] int32, slot of the request whose partial prefill it completes, or EMPTY.
      emits: [] int32, tokens that it yields.
      first_tokens: [] int32, requests whose first token it yields.
      first_prompt_tokens: [] int32, prompt tokens of those requests.
    """

    busy: jax.Array
    end: Time
    end_rest: jax.Array
    began: Time | None
    decodes: jax.Array
    first_order: jax.Array
    admitted: jax.Array
    completed_slot: jax.Array
    emits: jax.Array
    first_tokens: jax.Array
    first_prompt_tokens: jax.Array


class PartialPrefill(struct.PyTreeNode):
    """The one request of an instance whose prefill its budget cut: always the last admitted.

    Attributes:
      slot: [] int32, or EMPTY where there is none.
      kv: [] int32, tokens in the KV cache once the step in progress has ended.
      left: [] int32, known tokens still to be computed after it.
      output_left: [] int32, output tokens still to be yielded (hidden from the router).
      first_prompt_tokens: [] int32, its prompt tokens if it has no first token yet, else 0.
    """

    slot: jax.Array
    kv: jax.Array
    left: jax.Array
    output_left: jax.Array
    first_prompt_tokens: jax.Array


class Stamps(struct.PyTreeNode):
    """Token times of requests, by slot [S] or by request [N].

    Attributes:
      first: Time, of the first token; step is EMPTY before it.
      last: Time, of the latest token; by slot, of the latest one that did not come from decoding next to others:
        where `Ledger.last_decode` is later, that is the time.
      max_gap: float32, longest time between two tokens, seconds.
    """

    first: Time
    last: Time
    max_gap: jax.Array


class Ledger(struct.PyTreeNode):
    """What one instance records of the requests it served; rows of others stay EMPTY.

    Attributes:
      slots: Stamps [S] of the running requests.
      last_decode: Time [], end of the latest engine step that decoded.
      requests: Stamps [N], of requests when they were last preempted or finished (`last` is then the finish).
      start: Time [N], start of the engine step that first admitted the request.
      preemptions: [N] int32.
      recomputed_tokens: [N] int32, computed KV tokens that preemptions dropped.
    """

    slots: Stamps
    last_decode: Time
    requests: Stamps
    start: Time
    preemptions: jax.Array
    recomputed_tokens: jax.Array


class EngineState(struct.PyTreeNode):
    """One instance; in a fleet every leaf has a leading [I].

    Attributes:
      slots: the running requests.
      queue: the waiting ones.
      step: the engine step in progress.
      partial: the request whose prefill is not complete.
      running: [] int32, occupied slots.
      decode_count: [] int32, decode steps so far (see `Slots`).
      next_finish: [] int32, smallest `Slots.finish_at`.
      used_blocks: [] int32, KV blocks held, those of the step in progress included.
      phases: [P] int32, decoding sequences by `kv_base` modulo block_size: which of them need a block, and when.
      context: [] int32, sum over the decoding sequences of the context of their next step (KV tokens + 1).
      admissions: [] int32, requests admitted so far, resumed ones counted again.
      in_flight_tokens: [] int32, prompt and yielded tokens of the requests here.
      awaiting_first: [] int32, requests here without a first token.
      awaiting_prompt_tokens: [] int32, their prompt tokens.
      finished: [] int32, requests finished so far.
      finished_early_s: [] float32, seconds from each finish in the latest interval to the end of it, summed.
      latency_steps: [] int32, router intervals from arrival to finish, summed over the requests finished so far.
      late_steps: [] int32, those beyond `InstanceParams.late_after`.
      preemptions: [] int32, preemptions so far.
      recomputed_tokens: [] int32, computed KV tokens that preemptions dropped so far.
      overflow: [] bool, whether a request found the waiting queue full (the run is then void).
      stuck: [] bool, whether work was there that can never run (the run is then void).
      overrun: [] bool, whether an interval held more engine steps than were simulated (the run is then void).
      buckets: requests by predicted bucket, or None where they are not counted.
      ledger: per-request records, or None where none are kept.
    """

    slots: Slots
    queue: WaitingQueue
    step: EngineStep
    partial: PartialPrefill
    running: jax.Array
    decode_count: jax.Array
    next_finish: jax.Array
    used_blocks: jax.Array
    phases: jax.Array
    context: jax.Array
    admissions: jax.Array
    in_flight_tokens: jax.Array
    awaiting_first: jax.Array
    awaiting_prompt_tokens: jax.Array
    finished: jax.Array
    finished_early_s: jax.Array
    latency_steps: jax.Array
    late_steps: jax.Array
    preemptions: jax.Array
    recomputed_tokens: jax.Array
    overflow: jax.Array
    stuck: jax.Array
    overrun: jax.Array
    buckets: BucketCounts | None
    ledger: Ledger | None


class StepLog(struct.PyTreeNode):
    """The engine steps that one instance started in one router interval, up to K of them.

    Attributes:
      start_offset: [K] float32, seconds since the start of the interval.
      duration: [K] float32, seconds; 0 where there was no step.
      prefill_tokens: [K] int32.
      decode_seqs: [K] int32.
      preemptions: [K] int32.
      ended_offset: [K] float32, end of the step that ended before each of them, seconds since the start of the
        interval, -1 where none did; it carries derivatives, and there is None where no `fixed_steps` are run.
    """

    start_offset: jax.Array
    duration: jax.Array
    prefill_tokens: jax.Array
    decode_seqs: jax.Array
    preemptions: jax.Array
    ended_offset: jax.Array | None


class Scrape(struct.PyTreeNode):
    """What the servers' metrics said when they were last read.

    Attributes:
      step: [] int32, router interval of the reading.
      running: [I] int32, `vllm:num_requests_running`.
      waiting: [I] int32, `vllm:num_requests_waiting`.
      kv_usage: [I] float32 in [0, 1], `vllm:kv_cache_usage_perc`.
    """

    step: jax.Array
    running: jax.Array
    waiting: jax.Array
    kv_usage: jax.Array


class ClusterState(struct.PyTreeNode):
    """The fleet and its router at the start of interval `now`.

    Attributes:
      now: [] int32, router interval.
      arrived: [] int32, requests that have reached the router by now.
      dispatched: [] int32, requests sent so far; in fcfs order the next one is the head of the router queue.
      held: [N] int32, `Workload.priority` of the requests at the router, NEVER for all others; None in fcfs order.
      engines: EngineState, every leaf [I].
      scrape: the latest reading of the servers' metrics.
      instance: [N] int32, where each request was sent, EMPTY before; None where no records are kept.
      dispatch_step: [N] int32, router interval in which it was sent, EMPTY before; None likewise.
      sent: [R] int32, requests sent so far by each of several routers; None where there is one.
    """

    now: jax.Array
    arrived: jax.Array
    dispatched: jax.Array
    held: jax.Array | None
    engines: EngineState
    scrape: Scrape
    instance: jax.Array | None
    dispatch_step: jax.Array | None
    sent: jax.Array | None = None
