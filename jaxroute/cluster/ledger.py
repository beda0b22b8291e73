"""Per-request records, kept by the instance that serves the request.

The stamps of running requests live by slot and are stored by request when the request leaves its slot.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock
from jaxroute.cluster.state import EngineState, Ledger, Stamps
from jaxroute.types import EMPTY, Interval, Time


def empty_ledger(slots: int, requests: int) -> Ledger:
    """A ledger of nothing."""
    return Ledger(
        slots=_empty_stamps(slots),
        requests=_empty_stamps(requests),
        start=_no_time(requests),
        preemptions=jnp.zeros(requests, jnp.int32),
        recomputed_tokens=jnp.zeros(requests, jnp.int32),
    )


def stamp_tokens(state: EngineState, ends: jax.Array, dt: Interval) -> Ledger | None:
    """Stamps the tokens that the engine step in progress yields at its end, where `ends` ([] bool)."""
    if state.ledger is None:
        return None
    order, step, stamps = state.slots.order, state.step, state.ledger.slots
    slot = jnp.arange(order.shape[0], dtype=jnp.int32)
    emits = ends & (order >= 0) & (slot != state.partial.slot) & (step.decodes | (order >= step.first_order))
    has_token = stamps.first.step >= 0
    gap = clock.seconds_between(stamps.last, step.end, dt)
    slots = Stamps(
        first=clock.select(emits & ~has_token, step.end, stamps.first),
        last=clock.select(emits, step.end, stamps.last),
        max_gap=jnp.where(emits & has_token, jnp.maximum(stamps.max_gap, gap), stamps.max_gap),
    )
    return state.ledger.replace(slots=slots)


def store(ledger: Ledger | None, slot: jax.Array, request: jax.Array, wanted: jax.Array) -> Ledger | None:
    """Stores the stamps of the request that leaves `slot`, where `wanted`."""
    if ledger is None:
        return None
    row = _row(request, wanted, ledger)
    requests = jax.tree.map(lambda kept, held: kept.at[row].set(held[slot], mode="drop"), ledger.requests, ledger.slots)
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


def _row(request: jax.Array, wanted: jax.Array, ledger: Ledger) -> jax.Array:
    return jnp.where(wanted, request, ledger.preemptions.shape[0])


def _no_time(size: int) -> Time:
    return Time(step=jnp.full(size, EMPTY, jnp.int32), offset=jnp.zeros(size, jnp.float32))


def _empty_stamps(size: int) -> Stamps:
    return Stamps(first=_no_time(size), last=_no_time(size), max_gap=jnp.zeros(size, jnp.float32))
