"""KV cache arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def blocks_for(tokens: jax.Array, block_size: jax.Array) -> jax.Array:
    """Blocks that `tokens` fill, ceil(tokens / block_size); int32, exact to 2**21 tokens.

    No CPU divides integers in vector registers, so this multiplies by the reciprocal: half a token keeps the product
    away from the whole numbers by more than its rounding error.
    """
    full = (tokens + (block_size - 1)).astype(jnp.float32) + 0.5
    return jnp.floor(full * (1 / block_size.astype(jnp.float32))).astype(jnp.int32)


def phase_of(tokens: jax.Array, block_size: jax.Array) -> jax.Array:
    """`tokens` modulo `block_size`, also for negative tokens; int32."""
    return jnp.mod(tokens, block_size)
