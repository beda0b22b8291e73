"""How much better than expected an action was: generalised advantage estimation, less what a twin saw as well."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def discounted_returns(reward: jax.Array, ended: jax.Array, discount: float) -> jax.Array:
    """[T] float32, sum of the discounted rewards from each step to the end of the rollout or of the episode.

    Args:
      reward: [T] float32.
      ended: [T] bool, steps behind which nothing counts.
      discount: per step.
    """

    def back(after: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        now, end = step
        value = now + discount * jnp.where(end, 0, after)
        return value, value

    return jax.lax.scan(back, jnp.float32(0), (reward, ended), reverse=True)[1]


def generalised_advantage(
    reward: jax.Array,
    value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    discount: float,
    decay: float,
) -> jax.Array:
    """[T] float32, the advantages of Schulman et al. (2016).

    Args:
      reward: [T] float32.
      value: [T + 1] float32, of the state before every step and after the last.
      terminated: [T] bool, steps behind which there is nothing.
      ended: [T] bool, those and the steps at which an episode was cut off: the value of the state behind them stands
        for what would have followed.
      discount: gamma, per step.
      decay: lambda, per step.
    """
    error = reward + discount * jnp.where(terminated, 0, value[1:]) - value[:-1]
    return discounted_returns(error, ended, discount * decay)


def control_weight(advantage: jax.Array, twin: jax.Array, weight: jax.Array, axis: str | None) -> jax.Array:
    """How much of the twin's advantage is to be subtracted: the least-squares slope, in [0, 1]; [] float32.

    Args:
      advantage: [...] float32.
      twin: [...] float32, of the twin at the same steps.
      weight: [...] float32, of the steps.
      axis: mesh axis over which lanes are spread, or None.
    """

    def total(values: jax.Array) -> jax.Array:
        summed = jnp.sum(weight * values)
        return summed if axis is None else jax.lax.psum(summed, axis)

    count = jnp.maximum(total(jnp.ones_like(twin)), 1)
    one, other = advantage - total(advantage) / count, twin - total(twin) / count
    return jnp.clip(total(one * other) / jnp.maximum(total(other**2), 1e-12), 0, 1)
