"""Arithmetic of `Time`: an int32 interval and a float32 offset, so that no large float32 second is ever formed.

An engine adds thousands of step times one to the other. What each sum rounds off is kept and added to the next
(`rest`), so that a run of an hour is as exact as one of a second.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.types import Interval, Time

COARSE_BITS = 12


def make_interval(dt: float) -> Interval:
    """The router interval of `dt` seconds."""
    mantissa, exponent = np.frexp(dt)
    coarse = float(np.ldexp(np.floor(mantissa * 2**COARSE_BITS), int(exponent) - COARSE_BITS))
    return Interval(seconds=jnp.float32(dt), coarse=jnp.float32(coarse), rest=jnp.float32(dt - coarse))


def at_step(step: jax.Array) -> Time:
    """The start of interval `step`."""
    return Time(step=step, offset=jnp.zeros_like(step, jnp.float32))


def later(
    time: Time, rest: jax.Array, duration: jax.Array, duration_rest: jax.Array, dt: Interval
) -> tuple[Time, jax.Array]:
    """`time + duration`, both with what float32 rounds off them.

    The whole intervals in the sum are constants to the derivative; the offset carries it.

    Args:
      time: [] start.
      rest: [] float32, seconds to be added to it.
      duration: [] float32, seconds, >= 0.
      duration_rest: [] float32, seconds to be added to it.
      dt: the router interval.

    Returns:
      The end, its offset in [0, dt), and its rest.
    """
    total, rounded_off = _exact_sum(time.offset, duration)
    small = rounded_off + (rest + duration_rest)
    whole = jnp.floor(jax.lax.stop_gradient(total) / dt.seconds)
    # The quotient rounds: one interval too many or too few is put right here.
    remainder = _less_intervals(total, small, whole, dt)[0]
    short, long = remainder < 0, remainder >= dt.seconds
    whole = whole - short.astype(jnp.float32) + long.astype(jnp.float32)
    offset, rest = _less_intervals(total, small, whole, dt)
    # A hair below the start of an interval is on it; the derivative is that of the sum all the same.
    rest = jnp.where(offset < 0, 0, rest)
    offset = offset - jax.lax.stop_gradient(jnp.minimum(offset, 0))
    return Time(step=time.step + whole.astype(jnp.int32), offset=offset), rest


def seconds_between(start: Time, end: Time, dt: Interval) -> jax.Array:
    """`end - start` in seconds, float32."""
    return (end.step - start.step).astype(jnp.float32) * dt.seconds + (end.offset - start.offset)


def drift(time: Time, began: Time, end: Time, dt: Interval) -> jax.Array:
    """0, whose derivative is how `time` moves with a span that it is in, at a fixed share of the span; float32.

    Args:
      time: [...] between `began` and `end`.
      began, end: [] of the span.
      dt: the router interval.
    """
    length = jax.lax.stop_gradient(seconds_between(began, end, dt))
    since = jax.lax.stop_gradient(seconds_between(began, time, dt))
    share = jnp.clip(since / jnp.maximum(length, 1e-9), 0, 1)
    at_start, at_end = (each.offset - jax.lax.stop_gradient(each.offset) for each in (began, end))
    return at_start + share * (at_end - at_start)


def later_of(one: Time, other: Time) -> Time:
    """The later of two times."""
    after = (one.step > other.step) | ((one.step == other.step) & (one.offset > other.offset))
    return select(after, one, other)


def select(condition: jax.Array, one: Time, other: Time) -> Time:
    """`one` where the condition holds, else `other`."""
    return Time(step=jnp.where(condition, one.step, other.step), offset=jnp.where(condition, one.offset, other.offset))


def _less_intervals(total: jax.Array, small: jax.Array, whole: jax.Array, dt: Interval) -> tuple[jax.Array, jax.Array]:
    return _exact_sum(total - whole * dt.coarse, small - whole * dt.rest)


def _exact_sum(one: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The float32 sum, and what it rounded off (Knuth's two-sum)."""
    total = one + other
    share = total - one
    return total, (one - (total - share)) + (other - share)
