"""The pytrees of the simulator: frozen dataclasses (flax's `PyTreeNode`) whose every leaf is a jax array.

Axis letters: I instances, S request slots of one instance, Q places of one waiting queue, N requests of a workload,
B output-length buckets.
Shapes are those of one fleet; `vmap` puts an axis in front. Tokens and requests are int32, times float32 seconds.
"""

from __future__ import annotations

import jax
from flax import struct

EMPTY = -1
"""In place of a request id, a slot or an instance where there is none."""

NEVER = 2**31 - 1
"""A decode count that is never reached."""


class Time(struct.PyTreeNode):
    """A point in time: `step * dt + offset`, which keeps float32 exact however long the run.

    Attributes:
      step: [...] int32, router interval.
      offset: [...] float32 in [0, dt), seconds since the start of the interval.
    """

    step: jax.Array
    offset: jax.Array


class Interval(struct.PyTreeNode):
    """The router interval dt in parts, so that whole intervals can be subtracted without rounding.

    Attributes:
      seconds: [] float32, dt.
      coarse: [] float32, dt to 12 bits: a multiple of it below 4,096 is exact.
      rest: [] float32, dt less `coarse`.
    """

    seconds: jax.Array
    coarse: jax.Array
    rest: jax.Array


class StepCoefficients(struct.PyTreeNode):
    """The nine coefficients of the step time, in seconds (see `profiles`); every leaf float32 [I]."""

    W: jax.Array
    h: jax.Array
    g: jax.Array
    d: jax.Array
    e: jax.Array
    f: jax.Array
    x: jax.Array
    u: jax.Array
    v: jax.Array


class Workload(struct.PyTreeNode):
    """N requests in order of arrival; rows from `num_requests` on are padding and never arrive.

    Attributes:
      arrival: Time [N], when the request reaches the router.
      visible_step: [N] int32, first router interval whose start is not before the arrival; ascending.
      prompt_tokens: [N] int32.
      output_tokens: [N] int32, the truth, hidden from the router.
      predicted_bucket: [N] int32, predicted output-length bucket.
      predicted_tokens: [N] int32, output tokens that stand for the predicted bucket.
      predicted_upper: [N] int32, most output tokens of the predicted bucket.
      task: [N] int32.
      lead_s: [N + 1] float32, running sum of the seconds from each arrival to the start of the interval in which it
        becomes visible.
      ideal_s: [N] float32, T_j of the paper: estimated time that the request takes on an idle server.
      priority: [N] int32, rank in the shortest-predicted order of the router queue, ageing included.
      num_requests: [] int32.
    """

    arrival: Time
    visible_step: jax.Array
    prompt_tokens: jax.Array
    output_tokens: jax.Array
    predicted_bucket: jax.Array
    predicted_tokens: jax.Array
    predicted_upper: jax.Array
    task: jax.Array
    lead_s: jax.Array
    ideal_s: jax.Array
    priority: jax.Array
    num_requests: jax.Array


class InstanceParams(struct.PyTreeNode):
    """What one server is; in a fleet every leaf has a leading [I].

    Attributes:
      step: the step-time coefficients.
      step_rest: what float32 rounded off them, so that their errors do not add up over a long run.
      frontend_s: [I] float32, constant that a client sees on top of TTFT and E2E.
      kv_blocks, block_size, max_num_seqs, max_num_batched_tokens: [I] int32, the engine's limits.
      scheduler: [I] int32, a `Scheduler`.
      grad1, grad2: [I] float32, the paper's impact gradients, seconds per token.
    """

    step: StepCoefficients
    step_rest: StepCoefficients
    frontend_s: jax.Array
    kv_blocks: jax.Array
    block_size: jax.Array
    max_num_seqs: jax.Array
    max_num_batched_tokens: jax.Array
    scheduler: jax.Array
    grad1: jax.Array
    grad2: jax.Array


class ClusterParams(struct.PyTreeNode):
    """A fleet: its servers and the router's clock.

    Attributes:
      instances: InstanceParams, every leaf [I].
      dt: the router interval.
      scrape_period: [] int32, router intervals between two scrapes of the servers' metrics.
    """

    instances: InstanceParams
    dt: Interval
    scrape_period: jax.Array


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
      decodes: [] bool, whether the sequences admitted before it decode in it.
      first_order: [] int32, the smallest `Slots.order` of a request that it admits.
      emits: [] int32, tokens that it yields.
      first_tokens: [] int32, requests whose first token it yields.
      first_prompt_tokens: [] int32, prompt tokens of those requests.
    """

    busy: jax.Array
    end: Time
    end_rest: jax.Array
    decodes: jax.Array
    first_order: jax.Array
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
      last: Time, of the latest token.
      max_gap: float32, longest time between two tokens, seconds.
    """

    first: Time
    last: Time
    max_gap: jax.Array


class Ledger(struct.PyTreeNode):
    """What one instance records of the requests it served; rows of others stay EMPTY.

    Attributes:
      slots: Stamps [S] of the running requests.
      requests: Stamps [N], of requests when they were last preempted or finished (`last` is then the finish).
      start: Time [N], start of the engine step that first admitted the request.
      preemptions: [N] int32.
      recomputed_tokens: [N] int32, computed KV tokens that preemptions dropped.
    """

    slots: Stamps
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
    """

    start_offset: jax.Array
    duration: jax.Array
    prefill_tokens: jax.Array
    decode_seqs: jax.Array
    preemptions: jax.Array


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
    """

    now: jax.Array
    arrived: jax.Array
    dispatched: jax.Array
    held: jax.Array | None
    engines: EngineState
    scrape: Scrape
    instance: jax.Array | None
    dispatch_step: jax.Array | None


class RouterView(struct.PyTreeNode):
    """What a router can know at the start of an interval, and nothing else.

    Own knowledge is always fresh; `scraped_*` is as old as `scraped_age`.

    Attributes:
      now: [] int32, router interval.
      dt: [] float32, seconds.
      queue_length: [] int32, requests that have arrived and are not dispatched.
      head_prompt_tokens: [] int32, of the first of them (0 in an empty queue).
      head_predicted_bucket: [] int32.
      head_predicted_tokens: [] int32, output tokens that stand for the bucket.
      head_predicted_upper: [] int32, most output tokens of the bucket.
      head_wait: [] float32, seconds since the head arrived.
      dispatched: [] int32, requests dispatched so far.
      in_flight: [I] int32, dispatched and unfinished requests.
      in_flight_tokens: [I] int32, their prompt tokens and the output tokens that their streams have carried.
      awaiting_first: [I] int32, those without a first token.
      awaiting_prompt_tokens: [I] int32, prompt tokens of those.
      predicted_tokens_left: [I] int32, sum of predicted less streamed output tokens, no term below 0.
      full: [I] bool, instances that can take no request.
      kv_tokens: [I] int32, capacity of the KV cache (`vllm:cache_config_info`).
      profile: the servers' profiles, which the operator has measured; every leaf [I].
      scraped_running, scraped_waiting: [I] int32.
      scraped_kv_usage: [I] float32 in [0, 1].
      scraped_age: [] float32, seconds since the scrape.
      least_predicted_left: [I] int32, predicted output tokens left of the streaming request that has the fewest; 0
        where nothing streams.
      awaiting_by_bucket: [I, B] int32, requests without a first token by predicted bucket; None if not counted.
      streaming_by_bucket: [I, B] int32, unfinished ones with a first token, likewise.
    """

    now: jax.Array
    dt: jax.Array
    queue_length: jax.Array
    head_prompt_tokens: jax.Array
    head_predicted_bucket: jax.Array
    head_predicted_tokens: jax.Array
    head_predicted_upper: jax.Array
    head_wait: jax.Array
    dispatched: jax.Array
    in_flight: jax.Array
    in_flight_tokens: jax.Array
    awaiting_first: jax.Array
    awaiting_prompt_tokens: jax.Array
    predicted_tokens_left: jax.Array
    full: jax.Array
    kv_tokens: jax.Array
    profile: InstanceParams
    scraped_running: jax.Array
    scraped_waiting: jax.Array
    scraped_kv_usage: jax.Array
    scraped_age: jax.Array
    least_predicted_left: jax.Array
    awaiting_by_bucket: jax.Array | None
    streaming_by_bucket: jax.Array | None
