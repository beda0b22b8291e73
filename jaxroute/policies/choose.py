"""Small pieces that the heuristics share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.estimate import decode_step_s
from jaxroute.types import RouterView


def least(view: RouterView, score: jax.Array, eligible: jax.Array | None = None) -> jax.Array:
    """The eligible instance that is not full and has the least score ([I]); the first of equals; I where none is."""
    allowed = ~view.full if eligible is None else eligible & ~view.full
    instances = view.full.shape[0]
    score = jnp.where(allowed, score.astype(jnp.float32), jnp.inf)
    best = jnp.min(score)
    index = jnp.arange(instances, dtype=jnp.int32)
    return jnp.min(jnp.where(allowed & (score == best), index, instances))


def first_of_highest(logits: jax.Array) -> jax.Array:
    """[] int32, index of the first of the highest logits ([I + 1]); `argmax` is scalar code on CPU."""
    index = jnp.arange(logits.shape[0], dtype=jnp.int32)
    return jnp.min(jnp.where(logits == jnp.max(logits), index, logits.shape[0]))


def or_hold(view: RouterView, instance: jax.Array) -> jax.Array:
    """`instance`, or hold (I) where it is full."""
    instances = view.full.shape[0]
    return jnp.where(view.full[jnp.minimum(instance, instances - 1)], instances, instance)


def is_sent(view: RouterView, action: jax.Array) -> jax.Array:
    """[I] int32, 1 at the instance to which `action` sends a request, if there is one in the queue."""
    index = jnp.arange(view.full.shape[0], dtype=jnp.int32)
    return ((index == action) & (view.queue_length > 0)).astype(jnp.int32)


def step_with_head_s(view: RouterView, extra_tokens: jax.Array) -> jax.Array:
    """[I] seconds, a decode step with all of the instance's requests, the head, and `extra_tokens` in its context."""
    seqs = (view.in_flight + 1).astype(jnp.float32)
    context = (view.in_flight_tokens + view.head_prompt_tokens + extra_tokens).astype(jnp.float32)
    return decode_step_s(view.profile.step, seqs, context, jnp)
