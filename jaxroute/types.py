"""What goes into the simulator and what a router sees of it, as pytrees.

Frozen dataclasses (flax's `PyTreeNode`) whose every leaf is a jax array; the state in between is `cluster.state`.

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
      late_after: [I] int32, router intervals after which a request that is not finished counts as late; it changes
        nothing but `EngineState.late_steps`.
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
    late_after: jax.Array
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
      router: [] int32, of several routers that share no state the one whose view this is; None where there is one. Its
        own knowledge is of its own requests only, and `now` and `dt` count its own turns.
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
    router: jax.Array | None = None
