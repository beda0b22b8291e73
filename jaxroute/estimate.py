"""Estimates that a router makes from the servers' profiles, for NumPy and jax.numpy alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxroute.types import RouterView, StepCoefficients

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


def slowdown(step: StepCoefficients, seqs: Array, context: Array, xp: Any) -> Array:
    """A decode step of `seqs` sequences over `context` tokens in all, over that of one without a context.

    Arguments as in `decode_step_s`. Beyond a slowdown of some 3 another sequence hardly adds to the tokens per second
    any more, and those in flight pay for it.
    """
    alone = decode_step_s(step, xp.ones_like(seqs), xp.zeros_like(context), xp)
    return decode_step_s(step, seqs, context, xp) / alone


def added_latency_s(view: RouterView, xp: Any) -> Array:
    """[I] float32, seconds that sending the head to each instance adds to the latencies of all requests, estimated.

    The head's own: the prefill ahead of it and its predicted output at the decode step that it would join. The others':
    its prefill, and what its sequence adds to every decode step that they share with it.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays.
      xp: `jax.numpy` or `numpy`.
    """
    step = view.profile.step
    others, tokens = _float(view.in_flight, xp), _float(view.in_flight_tokens, xp)
    left, waiting = _float(view.predicted_tokens_left, xp), _float(view.awaiting_prompt_tokens, xp)
    prompt, output = _float(view.head_prompt_tokens, xp), xp.maximum(_float(view.head_predicted_tokens, xp), 1)
    seqs = others + 1
    own = step.g * (waiting + prompt) + output * decode_step_s(step, seqs, tokens + prompt, xp)
    grows = xp.where(step.h + step.g * seqs > step.W, step.g, 0)
    longer_step = step.d * (prompt + output / 2) + step.e + grows
    shared_steps = xp.minimum(left / xp.maximum(others, 1), output)
    return own + others * (step.g * prompt + shared_steps * longer_step)


def _float(values: Array, xp: Any) -> Array:
    return xp.asarray(values, xp.float32)
