"""How long an engine step takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.types import InstanceParams, StepCoefficients


class StepWork(struct.PyTreeNode):
    """What an engine step computes; every leaf [], or any one shape.

    Attributes:
      prefill_tokens: p, int32, new prompt tokens.
      prefill_squares: sum of p_i^2, float32.
      prefill_times_kv: sum of p_i * k_i, float32.
      decode_seqs: n, int32.
      context_tokens: C, int32, contexts that the decoding sequences attend to.
    """

    prefill_tokens: jax.Array
    prefill_squares: jax.Array
    prefill_times_kv: jax.Array
    decode_seqs: jax.Array
    context_tokens: jax.Array


def step_time(params: InstanceParams, work: StepWork) -> tuple[jax.Array, jax.Array]:
    """The nine-coefficient step time of `jaxroute.profiles`.

    Returns:
      Seconds, float32, and the seconds that come on top from what float32 rounded off the coefficients.
    """
    tokens = (work.prefill_tokens + work.decode_seqs).astype(jnp.float32)
    is_flat = params.step.h + params.step.g * tokens <= params.step.W
    return _evaluate(params.step, work, tokens, is_flat), _evaluate(params.step_rest, work, tokens, is_flat)


def _evaluate(step: StepCoefficients, work: StepWork, tokens: jax.Array, is_flat: jax.Array) -> jax.Array:
    seqs, context = work.decode_seqs.astype(jnp.float32), work.context_tokens.astype(jnp.float32)
    linear = jnp.where(is_flat, step.W, step.h + step.g * tokens)
    decode = step.d * context + step.e * seqs + jnp.where(work.decode_seqs > 0, step.v, 0)
    prefill = step.f * work.prefill_squares + step.x * work.prefill_times_kv
    return linear + decode + prefill + jnp.where(work.prefill_tokens > 0, step.u, 0)
