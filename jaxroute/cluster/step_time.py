"""How long an engine step takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.types import InstanceParams


def step_time(
    params: InstanceParams,
    *,
    prefill_tokens: jax.Array,
    prefill_squares: jax.Array,
    prefill_times_kv: jax.Array,
    decode_seqs: jax.Array,
    context_tokens: jax.Array,
) -> jax.Array:
    """Seconds, float32: the nine-coefficient step time of `jaxroute.profiles`.

    Args:
      params: one instance (every leaf []), or any shape that the others broadcast with.
      prefill_tokens: p, int32, new prompt tokens.
      prefill_squares: sum of p_i^2, float32.
      prefill_times_kv: sum of p_i * k_i, float32.
      decode_seqs: n, int32.
      context_tokens: C, int32, contexts that the decoding sequences attend to.
    """
    tokens = (prefill_tokens + decode_seqs).astype(jnp.float32)
    seqs = decode_seqs.astype(jnp.float32)
    linear = jnp.maximum(params.W, params.h + params.g * tokens)
    decode = params.d * context_tokens.astype(jnp.float32) + params.e * seqs + jnp.where(decode_seqs > 0, params.v, 0)
    prefill = params.f * prefill_squares + params.x * prefill_times_kv + jnp.where(prefill_tokens > 0, params.u, 0)
    return linear + decode + prefill
