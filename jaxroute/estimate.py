"""Estimates that a router makes from the servers' profiles, for NumPy and jax.numpy alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxroute.types import StepCoefficients

Array = Any
"""An array of NumPy or of jax."""


def decode_step_s(step: StepCoefficients, seqs: Array, context: Array, xp: Any) -> Array:
    """Seconds that a step takes which decodes `seqs` sequences over `context` tokens in all; shapes broadcast.

    Args:
      step: coefficients in seconds, of jax arrays or any object with the same fields.
      seqs: float32.
      context: float32.
      xp: `jax.numpy` or `numpy`.
    """
    return xp.maximum(step.W, step.h + step.g * seqs) + step.d * context + step.e * seqs + step.v
