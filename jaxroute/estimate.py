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


def joined_step_s(view: RouterView, xp: Any) -> Array:
    """[I] float32, seconds of a decode step of each instance once the head has joined it; arguments as below."""
    tokens = float32(view.in_flight_tokens, xp) + float32(view.head_prompt_tokens, xp)
    return decode_step_s(view.profile.step, float32(view.in_flight, xp) + 1, tokens, xp)


def slowdown(step: StepCoefficients, step_s: Array, xp: Any) -> Array:
    """A decode step that takes `step_s` seconds over one of a single sequence without a context.

    Beyond a slowdown of some 3 another sequence hardly adds to the tokens per second any more, and those in flight pay
    for it.
    """
    return step_s / (xp.maximum(step.W, step.h + step.g) + step.e + step.v)


def added_latency_s(view: RouterView, step_s: Array, xp: Any) -> Array:
    """[I] float32, seconds that sending the head to each instance adds to the latencies of all requests, estimated.

    The head's own: the prefill ahead of it and its predicted output at the decode step that it would join. The others':
    its prefill, and what its sequence adds to every decode step that they share with it.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays.
      step_s: `joined_step_s` of it.
      xp: `jax.numpy` or `numpy`.
    """
    step = view.profile.step
    others = float32(view.in_flight, xp)
    left, waiting = float32(view.predicted_tokens_left, xp), float32(view.awaiting_prompt_tokens, xp)
    prompt, output = float32(view.head_prompt_tokens, xp), xp.maximum(float32(view.head_predicted_tokens, xp), 1)
    own = step.g * (waiting + prompt) + output * step_s
    grows = step.g * float32(step.h + step.g * (others + 1) > step.W, xp)
    longer_step = step.d * (prompt + output / 2) + step.e + grows
    shared_steps = xp.minimum(left / xp.maximum(others, 1), output)
    return own + others * (step.g * prompt + shared_steps * longer_step)


def float32(values: Array, xp: Any) -> Array:
    """Numbers as float32, whatever they are."""
    return xp.asarray(values, xp.float32)
