"""Per-request records, kept by the instance that serves the request.

The stamps of running requests live by slot and are stored by request when the request leaves its slot.
They are constants to the derivative (see `jaxroute.gradients`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.state import EngineState, Ledger, Stamps
from jaxroute.types import EMPTY, Interval, Time


def empty_ledger(slots: int, requests: int) -> Ledger:
    """A ledger of nothing."""
    return Ledger(
        slots=_empty_stamps(slots),
        last_decode=clock.at_step(jnp.int32(EMPTY)),
        requests=_empty_stamps(requests),
        start=_no_time(requests),
        preemptions=jnp.zeros(requests, jnp.int32),
        recomputed_tokens=jnp.zeros(requests, jnp.int32),
    )


def stamp_tokens(state: EngineState, ends: jax.Array, dt: Interval) -> Ledger | None:
    """Stamps the tokens that the engine step in progress yields at its end, where `ends` ([] bool).

    All that decode do so in every decode step: one time, `last_decode`, stands for the latest token of each. Only those
    that join them, from a prefill, are stamped one by one.
    """
    ledger, step = state.ledger, state.step
    if ledger is None:
        return None
    order, stamps = state.slots.order, ledger.slots
    slot = jnp.arange(order.shape[0], dtype=jnp.int32)
    decoded = ends & step.decodes & (order >= 0) & (order < step.first_order)
    decoded = decoded & (slot != state.partial.slot) & (slot != step.completed_slot)
    gap = clock.seconds_between(clock.later_of(stamps.last, ledger.last_decode), step.end, dt)
    max_gap = jnp.where(decoded, jnp.maximum(stamps.max_gap, gap), stamps.max_gap)
    joining = jnp.where(ends, step.admitted + (step.completed_slot >= 0).astype(jnp.int32), 0)

    def join(carry: tuple[jax.Array, Stamps]) -> tuple[jax.Array, Stamps]:
        left, stamps = carry
        taken = state.slots.free[jnp.maximum(state.running - left, 0)]
        joiner = jnp.where(left > step.admitted, step.completed_slot, taken)
        # A prefill that this step only cut has no token yet.
        wanted = (left > 0) & (joiner != state.partial.slot)
        return left - (left > 0).astype(jnp.int32), _stamp_joiner(stamps, joiner, step.end, wanted, dt)

    _, stamps = repeat_while(lambda carry: carry[0] > 0, join, (joining, stamps.replace(max_gap=max_gap)))
    return ledger.replace(slots=stamps, last_decode=clock.select(ends & step.decodes, step.end, ledger.last_decode))


def store(
    ledger: Ledger | None, slot: jax.Array, request: jax.Array, wanted: jax.Array, *, decodes: jax.Array
) -> Ledger | None:
    """Stores the stamps of the request that leaves `slot`, where `wanted`; `decodes` says whether it was decoding."""
    if ledger is None:
        return None
    held = jax.tree.map(lambda leaf: leaf[slot], ledger.slots)
    held = held.replace(last=clock.select(decodes, clock.later_of(held.last, ledger.last_decode), held.last))
    row = _row(request, wanted, ledger)
    requests = jax.tree.map(lambda kept, value: kept.at[row].set(value, mode="drop"), ledger.requests, held)
    return ledger.replace(requests=requests)


def load(ledger: Ledger | None, slot: jax.Array, request: jax.Array, wanted: jax.Array, start: Time) -> Ledger | None:
    """Gives `slot` the stamps of the request admitted to it at `start`, where `wanted`."""
    if ledger is None:
        return None
    target = jnp.where(wanted, slot, ledger.slots.max_gap.shape[0])
    slots = jax.tree.map(
        lambda held, kept: held.at[target].set(kept[request], mode="drop"), ledger.slots, ledger.requests
    )
    row = _row(request, wanted & (ledger.start.step[request] < 0), ledger)
    return ledger.replace(
        slots=slots,
        start=Time(
            step=ledger.start.step.at[row].set(start.step, mode="drop"),
            offset=ledger.start.offset.at[row].set(start.offset, mode="drop"),
        ),
    )


def count_preemption(
    ledger: Ledger | None, request: jax.Array, computed_tokens: jax.Array, wanted: jax.Array
) -> Ledger | None:
    """Counts a preemption that dropped `computed_tokens`, where `wanted`."""
    if ledger is None:
        return None
    row = _row(request, wanted, ledger)
    return ledger.replace(
        preemptions=ledger.preemptions.at[row].add(1, mode="drop"),
        recomputed_tokens=ledger.recomputed_tokens.at[row].add(computed_tokens, mode="drop"),
    )


def _stamp_joiner(stamps: Stamps, slot: jax.Array, end: Time, wanted: jax.Array, dt: Interval) -> Stamps:
    held = jax.tree.map(lambda leaf: leaf[slot], stamps)
    has_token = held.first.step >= 0
    gap = clock.seconds_between(held.last, end, dt)
    value = Stamps(
        first=clock.select(has_token, held.first, end),
        last=end,
        max_gap=jnp.where(has_token, jnp.maximum(held.max_gap, gap), held.max_gap),
    )
    target = jnp.where(wanted, slot, stamps.max_gap.shape[0])
    return jax.tree.map(lambda leaf, new: leaf.at[target].set(new, mode="drop"), stamps, value)


def _row(request: jax.Array, wanted: jax.Array, ledger: Ledger) -> jax.Array:
    return jnp.where(wanted, request, ledger.preemptions.shape[0])


def _no_time(size: int) -> Time:
    return Time(step=jnp.full(size, EMPTY, jnp.int32), offset=jnp.zeros(size, jnp.float32))


def _empty_stamps(size: int) -> Stamps:
    return Stamps(first=_no_time(size), last=_no_time(size), max_gap=jnp.zeros(size, jnp.float32))
