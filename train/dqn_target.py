"""What a Q value should be: rewards in a row, then the double estimate of van Hasselt et al. (2016).

Axis letter: n rewards in a row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Return(NamedTuple):
    """Rewards in a row, from one transition on; [...] float32 each.

    Attributes:
      reward: discounted sum, up to the end of the episode if that is among them.
      factor: of the value behind the last one; 0 where the episode has ended.
      weight: 1, or 0 where nothing can be learned: before the first row the episode had ended, or it is cut off
        within them, and what it would have come to is unknown.
    """

    reward: jax.Array
    factor: jax.Array
    weight: jax.Array


def returns(
    reward: jax.Array, terminated: jax.Array, ended: jax.Array, alive: jax.Array, discount: jax.Array
) -> Return:
    """The return of n rows in a row.

    Args:
      reward: [..., n] float32.
      terminated: [..., n] bool, whether the episode came to its end in the interval.
      ended: [..., n] bool, whether it did or was cut off.
      alive: [..., n] bool, whether it had not ended before.
      discount: [] float32, factor of an interval.
    """
    steps = reward.shape[-1]
    over = jnp.cumsum(ended.astype(jnp.int32), axis=-1) - ended.astype(jnp.int32) > 0
    counts = alive[..., :1] & ~over
    factors = discount ** jnp.arange(steps, dtype=jnp.float32)
    whole = jnp.sum(jnp.where(counts, reward, 0) * jnp.expand_dims(factors, range(reward.ndim - 1)), axis=-1)
    ends = jnp.any(counts & ended, axis=-1)
    cut_off = jnp.any(counts & ended & ~terminated, axis=-1)
    return Return(
        reward=whole,
        factor=jnp.where(ends, 0, discount**steps),
        weight=(alive[..., 0] & ~cut_off).astype(jnp.float32),
    )


def double_target(back: Return, online: jax.Array, target: jax.Array) -> jax.Array:
    """[...] float32: the network chooses the next action, and the target network says what it is worth.

    Args:
      back: the rewards before it.
      online, target: [..., A] float32, both networks' values of the actions behind the last row; actions that are not
        allowed have the least ones, and there is always one that is.
    """
    best = jnp.argmax(online, axis=-1)
    value = jnp.take_along_axis(target, best[..., None], axis=-1)[..., 0]
    # Not a product: what is behind an end is another episode's.
    return back.reward + jnp.where(back.factor > 0, back.factor * value, 0)


def chosen(values: jax.Array, action: jax.Array) -> jax.Array:
    """[...] float32, the values [..., A] of the actions [...]."""
    return jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]


def huber(error: jax.Array) -> jax.Array:
    """Half the square up to 1, linear beyond."""
    size = jnp.abs(error)
    return jnp.where(size <= 1, 0.5 * error**2, size - 0.5)
