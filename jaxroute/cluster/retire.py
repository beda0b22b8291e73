"""The end of an engine step: its tokens are out, finished requests leave."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster import ledger
from jaxroute.cluster.bucket_counts import finished, step_ended
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.slots import first_index, leave_decode
from jaxroute.cluster.state import EngineState
from jaxroute.types import InstanceParams, Interval, Workload


def end_step(
    params: InstanceParams, workload: Workload, state: EngineState, ends: jax.Array, dt: Interval
) -> EngineState:
    """Ends the step in progress of one instance, where `ends` ([] bool)."""
    one = ends.astype(jnp.int32)
    step = state.step
    state = state.replace(
        ledger=ledger.stamp_tokens(state, ends, dt),
        buckets=step_ended(state.buckets, ends),
        step=step.replace(busy=step.busy & ~ends),
        in_flight_tokens=state.in_flight_tokens + one * step.emits,
        awaiting_first=state.awaiting_first - one * step.first_tokens,
        awaiting_prompt_tokens=state.awaiting_prompt_tokens - one * step.first_prompt_tokens,
    )
    return repeat_while(
        lambda now: ends & (now.next_finish <= now.decode_count),
        lambda now: _finish_one(params, workload, now, ends),
        state,
    )


def _finish_one(params: InstanceParams, workload: Workload, state: EngineState, ends: jax.Array) -> EngineState:
    wanted = ends & (state.next_finish <= state.decode_count)
    # Without a finished request the search gives some occupied or free slot, which `wanted` leaves alone.
    slot = first_index(state.slots.finish_at == state.next_finish)
    request = state.slots.request[slot]
    all_tokens = state.slots.kv_base[slot] + state.decode_count + 1
    one = wanted.astype(jnp.int32)
    latency = state.step.end.step - workload.arrival.step[request]
    state = state.replace(
        ledger=ledger.store(state.ledger, slot, request, wanted, decodes=jnp.bool_(True)),
        in_flight_tokens=state.in_flight_tokens - one * all_tokens,
        finished=state.finished + one,
        latency_steps=state.latency_steps + one * latency,
        late_steps=state.late_steps + one * jnp.maximum(latency - params.late_after, 0),
        buckets=finished(state.buckets, workload, request, wanted),
    )
    return leave_decode(params, state, slot=slot, wanted=wanted)
