"""Heuristics that weigh requests by their tokens, known or predicted."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxroute.estimate import decode_step_s
from jaxroute.policies.choose import is_sent, least, step_with_head_s
from jaxroute.policies.protocol import PolicyState, Stateless
from jaxroute.types import RouterView

HEAVY_DECODE_S = 5.0
"""A decode is heavy when it takes this long or longer (the paper, section 4.2)."""


@dataclasses.dataclass(frozen=True)
class FewestOutstandingTokens(Stateless):
    """Fewest tokens left to compute: prompts without a first token, and predicted output tokens left.

    This is the paper's "join shortest queue" (its appendix A.2.1).
    """

    name: str = "fewest-outstanding-tokens"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        return least(view, view.awaiting_prompt_tokens + view.predicted_tokens_left)


@dataclasses.dataclass(frozen=True)
class DecodeBalancer(Stateless):
    """Fewest predicted output tokens left (the paper's decode balancer has the true lengths: `--prediction oracle`)."""

    name: str = "decode-balancer"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        return least(view, view.predicted_tokens_left)


@dataclasses.dataclass(frozen=True)
class LMetric(Stateless):
    """Least product of queued prefill tokens and batch size, the head counted in both."""

    name: str = "lmetric"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        queued = (view.awaiting_prompt_tokens + view.head_prompt_tokens).astype(jnp.float32)
        return least(view, queued * (view.in_flight + 1).astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class MinMin(Stateless):
    """Earliest estimated completion of the head, at the upper bound of its predicted bucket.

    The estimate comes from the servers' profiles: the prompts in front of it and its own are prefilled, then its
    output is decoded in a batch of all that is in flight. Of Min-Min's two minima the first, over the requests, is
    taken by the order of the router queue.
    """

    name: str = "min-min"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        prompts = (view.awaiting_prompt_tokens + view.head_prompt_tokens).astype(jnp.float32)
        upper = view.head_predicted_upper
        decode_s = upper.astype(jnp.float32) * step_with_head_s(view, upper // 2)
        return least(view, view.profile.step.g * prompts + decode_s)


@dataclasses.dataclass(frozen=True)
class DedicatedSmallLarge(Stateless):
    """One half of the fleet for light decodes, the other for heavy ones; fewest requests in flight within a half.

    A decode is heavy when its predicted tokens take `HEAVY_DECODE_S` or longer on the first instance's profile.
    """

    name: str = "dedicated-small-large"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        instances = view.full.shape[0]
        step_s = decode_step_s(view.profile.step, jnp.float32(1), jnp.float32(0), jnp)[0]
        heavy = view.head_predicted_tokens.astype(jnp.float32) * step_s >= HEAVY_DECODE_S
        index = jnp.arange(instances, dtype=jnp.int32)
        for_heavy = (index >= (instances + 1) // 2) | (instances == 1)
        for_light = index < (instances + 1) // 2
        return least(view, view.in_flight, jnp.where(heavy, for_heavy, for_light))


@dataclasses.dataclass(frozen=True)
class MaxCapacity:
    """Most free KV capacity that fits the head and its predicted output, read once a second; holds while none fits.

    Between two readings the capacity falls by what the router itself sends. An instance with nothing in flight
    always fits.
    """

    name: str = "max-capacity"
    period_s: float = 1.0

    def initial_state(self, instances: int) -> PolicyState:
        """Free capacity ([I] int32, tokens) and the time since it was read ([] float32, seconds)."""
        return jnp.zeros(instances, jnp.int32), jnp.float32(jnp.inf)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        del key
        free, age = state
        due = age >= self.period_s
        free = jnp.where(due, view.kv_tokens - view.in_flight_tokens, free)
        size = view.head_prompt_tokens + view.head_predicted_tokens
        action = least(view, -free, (free >= size) | (view.in_flight == 0))
        free = free - size * is_sent(view, action)
        return action, (free, jnp.where(due, 0, age) + view.dt)
