"""Arithmetic of `Time`: an int32 interval and a float32 offset, so that no large float32 second is ever formed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.types import Time


def at_step(step: jax.Array) -> Time:
    """The start of interval `step`."""
    return Time(step=step, offset=jnp.zeros_like(step, jnp.float32))


def later(time: Time, duration: jax.Array, dt: jax.Array) -> Time:
    """`time + duration`.

    The whole intervals in it are constants to the derivative; the offset carries it.

    Args:
      time: [...] start.
      duration: [...] float32, seconds, >= 0.
      dt: [] float32, seconds.
    """
    total = time.offset + duration
    whole = jnp.floor(jax.lax.stop_gradient(total) / dt)
    offset = total - whole * dt
    whole = whole.astype(jnp.int32)
    # The quotient rounds: one interval too many or too few is put right here.
    short, long = offset < 0, offset >= dt
    whole = whole - short.astype(jnp.int32) + long.astype(jnp.int32)
    offset = jnp.where(short, jnp.maximum(offset + dt, 0), jnp.where(long, offset - dt, offset))
    return Time(step=time.step + whole, offset=offset)


def seconds_between(start: Time, end: Time, dt: jax.Array) -> jax.Array:
    """`end - start` in seconds, float32."""
    return (end.step - start.step).astype(jnp.float32) * dt + (end.offset - start.offset)


def select(condition: jax.Array, one: Time, other: Time) -> Time:
    """`one` where the condition holds, else `other`."""
    return Time(step=jnp.where(condition, one.step, other.step), offset=jnp.where(condition, one.offset, other.offset))
