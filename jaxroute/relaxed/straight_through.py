"""One-hot choices with the derivative of soft ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gumbel_choice(key: jax.Array, logits: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """A draw from a categorical distribution that gradients go through (Jang et al., 2017).

    Args:
      key: typed key, consumed.
      logits: [A] float32; those of actions that are not allowed are the least finite float32.
      temperature: of the softmax whose derivative stands for that of the draw.

    Returns:
      [A] float32 weights, 1 at the draw and 0 elsewhere, and the draw, [] int32. The draw has the probabilities of
      the logits, whatever the temperature.
    """
    noisy = jnp.where(is_allowed(logits), logits + jax.random.gumbel(key, logits.shape), logits)
    return straight_through(noisy, temperature), jnp.argmax(noisy).astype(jnp.int32)


def expected_choice(key: jax.Array, logits: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """The same draw with the derivative of the probabilities themselves, which has no noise of its own.

    With what every action would have cost as the derivative by its weight, that by the logits is the exact one of the
    expected cost of this draw. Arguments and results as in `gumbel_choice`.
    """
    noisy = jnp.where(is_allowed(logits), logits + jax.random.gumbel(key, logits.shape), logits)
    chosen = jnp.argmax(noisy).astype(jnp.int32)
    return _exact(chosen, jax.nn.softmax(logits / temperature)), chosen


def straight_through(logits: jax.Array, temperature: float) -> jax.Array:
    """[A] float32, 1 at the highest logit, with the derivative of the softmax."""
    return _exact(jnp.argmax(logits), jax.nn.softmax(logits / temperature))


def _exact(chosen: jax.Array, soft: jax.Array) -> jax.Array:
    # The difference first: it is 0, so that the weights are 0 and 1 to the last bit.
    return jax.nn.one_hot(chosen, soft.shape[-1]) + (soft - jax.lax.stop_gradient(soft))


def is_allowed(logits: jax.Array) -> jax.Array:
    """[A] bool, actions that are not masked."""
    return logits > jnp.finfo(jnp.float32).min / 2


ESTIMATORS = {"gumbel": gumbel_choice, "expected": expected_choice}
"""By name."""
