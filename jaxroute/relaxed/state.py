"""The relaxed fleet as pytrees.

Axis letters: I instances, M rows. A row is a request that has been dispatched; rows are in order of dispatch, which in
fcfs order is also the order in which an instance admits and the reverse of that in which it preempts. Tokens and blocks
are float32 (exact below 2**24), since a weight may multiply them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import clock
from jaxroute.types import EMPTY, ClusterParams, Time, Workload

GONE, WAITING, PREFILLING, DECODING = 0, 1, 2, 3
"""Where a copy is: not there (any more), in the queue, running with tokens to be prefilled, or decoding."""

NOT_BLOCKED, BY_BLOCKS, BY_SEQS = 0, 1, 2
"""What kept a copy from being admitted when it was last tried: nothing, KV blocks, or `max_num_seqs`."""


class Rows(struct.PyTreeNode):
    """What the requests are; every leaf [M].

    Attributes:
      request: int32, request id, EMPTY in a free row.
      prompt, output: float32 tokens, the output being the truth.
      predicted: float32, predicted output tokens.
      arrival: Time.
    """

    request: jax.Array
    prompt: jax.Array
    output: jax.Array
    predicted: jax.Array
    arrival: Time


class Copies(struct.PyTreeNode):
    """One instance's copies of the requests, [M] leaves; in a fleet [I, M].

    Attributes:
      weight: float32 in [0, 1], with which the request is here.
      stage: int32, GONE to DECODING.
      kv: float32, tokens in the KV cache at the end of the last step.
      generated: float32, output tokens yielded.
      chunk: float32, tokens that the step in progress computes; 0 for those that have no part in it.
      extra_s: float32 seconds, by which its own steps would have been longer with the copy whole; to be added to its
        latency. 0 at weight 1.
      delay_s: float32 seconds, always 0: it carries the derivative of the wait for a place in the KV cache.
      blocked: int32, NOT_BLOCKED to BY_SEQS.
      finish: Time, of the last token, or None where no records are kept; step is EMPTY before it.
      preemptions: int32, or None likewise.
    """

    weight: jax.Array
    stage: jax.Array
    kv: jax.Array
    generated: jax.Array
    chunk: jax.Array
    extra_s: jax.Array
    delay_s: jax.Array
    blocked: jax.Array
    finish: Time | None
    preemptions: jax.Array | None


class Engine(struct.PyTreeNode):
    """One instance; in a fleet every leaf has a leading [I].

    Attributes:
      copies: the requests.
      busy: [] bool, whether a step is in progress.
      end: Time [], when it ends; the offset carries the derivative.
      end_rest: [] float32, seconds that float32 rounded off `end`.
      length_s: [] float32, how long it takes.
      presence: [] float32 in [0, 1], how much of it is real: the weights in it, added up to 1 at the most.
      block_rate: [] float32, KV blocks released per second, a running mean.
      seq_rate: [] float32, sequences finished per second, likewise.
      drift_s: [] float32 seconds, always 0: by how much the releases of KV blocks are late, for the derivative.
    """

    copies: Copies
    busy: jax.Array
    end: Time
    end_rest: jax.Array
    length_s: jax.Array
    presence: jax.Array
    block_rate: jax.Array
    seq_rate: jax.Array
    drift_s: jax.Array


class Scraped(struct.PyTreeNode):
    """What the servers' metrics said when last read: step [] int32; running, waiting, kv_usage [I] float32."""

    step: jax.Array
    running: jax.Array
    waiting: jax.Array
    kv_usage: jax.Array


class RelaxedState(struct.PyTreeNode):
    """The relaxed fleet and its router at the start of interval `now`.

    Attributes:
      now: [] int32, router interval.
      arrived: [] int32, requests that have reached the router.
      dispatched: [] int32, requests sent; the next one is the head of the queue.
      used: [] int32, rows in use, from the front.
      rows: the requests.
      engines: every leaf [I].
      scraped: the latest reading of the metrics.
      overflow: [] bool, whether a request found no free row (the run is then void).
    """

    now: jax.Array
    arrived: jax.Array
    dispatched: jax.Array
    used: jax.Array
    rows: Rows
    engines: Engine
    scraped: Scraped
    overflow: jax.Array


def initial_state(
    params: ClusterParams, workload: Workload, rows: int, *, records: bool = False, seconds_to_turn_over: float = 10.0
) -> RelaxedState:
    """An idle fleet before the first interval.

    Args:
      params: the fleet.
      workload: the requests.
      rows: M.
      records: whether finish times and preemptions are kept by copy.
      seconds_to_turn_over: first guess of how long it takes to release as much as an instance can hold.
    """
    instances = params.instances.kv_blocks.shape[0]

    def spread(leaf: jax.Array) -> jax.Array:
        return jnp.broadcast_to(leaf, (instances, *leaf.shape))

    nothing, none = jnp.zeros(rows), jnp.zeros(rows, jnp.int32)
    never = Time(step=jnp.full(rows, EMPTY, jnp.int32), offset=nothing)
    copies = Copies(
        weight=nothing,
        stage=none,
        kv=nothing,
        generated=nothing,
        chunk=nothing,
        extra_s=nothing,
        delay_s=nothing,
        blocked=none,
        finish=never if records else None,
        preemptions=none if records else None,
    )
    zero, idle = jnp.float32(0), jnp.zeros(instances)
    engines = Engine(
        copies=jax.tree.map(spread, copies),
        busy=jnp.zeros(instances, bool),
        end=jax.tree.map(spread, clock.at_step(jnp.int32(0))),
        end_rest=idle,
        length_s=idle,
        presence=spread(zero),
        block_rate=params.instances.kv_blocks.astype(jnp.float32) / seconds_to_turn_over,
        seq_rate=params.instances.max_num_seqs.astype(jnp.float32) / seconds_to_turn_over,
        drift_s=idle,
    )
    return RelaxedState(
        now=jnp.int32(0),
        arrived=arrived_by(workload, jnp.int32(0)),
        dispatched=jnp.int32(0),
        used=jnp.int32(0),
        rows=Rows(
            request=jnp.full(rows, EMPTY, jnp.int32), prompt=nothing, output=nothing, predicted=nothing, arrival=never
        ),
        engines=engines,
        scraped=Scraped(step=jnp.int32(0), running=idle, waiting=idle, kv_usage=idle),
        overflow=jnp.bool_(False),
    )


def arrived_by(workload: Workload, now: jax.Array) -> jax.Array:
    """[] int32, requests that the router can see at the start of interval `now`."""
    visible = jnp.sum(workload.visible_step <= now, dtype=jnp.int32)
    return jnp.minimum(visible, workload.num_requests)


def all_finished(workload: Workload, state: RelaxedState) -> jax.Array:
    """[] bool, whether every request has been sent and no copy with a weight is left."""
    copies = state.engines.copies
    left = jnp.any((copies.stage != GONE) & (copies.weight > 0))
    return (state.dispatched >= workload.num_requests) & ~left


def compacted(state: RelaxedState) -> RelaxedState:
    """The state as constants, without copies that weigh nothing and with its free rows at the end."""
    state = jax.lax.stop_gradient(state)
    copies = state.engines.copies
    stays = (copies.stage != GONE) & (copies.weight > 0)
    kept = jnp.any(stays, axis=0)
    rows = kept.shape[0]
    count = jnp.sum(kept, dtype=jnp.int32)
    # The kept rows in their order, then whatever is to be emptied.
    source = jnp.argsort(~kept, stable=True)
    taken = jnp.arange(rows, dtype=jnp.int32) < count
    moved_rows = jax.tree.map(lambda leaf: leaf[source], state.rows)
    moved = jax.tree.map(lambda leaf: leaf[:, source], copies)
    here = taken[None] & stays[:, source]
    moved = moved.replace(
        stage=jnp.where(here, moved.stage, GONE),
        weight=jnp.where(here, moved.weight, 0),
        chunk=jnp.where(here, moved.chunk, 0),
    )
    return state.replace(
        used=count,
        rows=moved_rows.replace(request=jnp.where(taken, moved_rows.request, EMPTY)),
        engines=state.engines.replace(copies=moved),
    )
