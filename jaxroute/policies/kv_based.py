"""Heuristics that look at the KV cache."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxroute.policies.choose import least
from jaxroute.policies.protocol import Stateless
from jaxroute.types import RouterView


@dataclasses.dataclass(frozen=True)
class LeastKv(Stateless):
    """Least scraped KV cache usage; among equals the fewest requests in flight."""

    name: str = "least-kv"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        lowest = jnp.min(jnp.where(view.full, jnp.inf, view.scraped_kv_usage))
        return least(view, view.in_flight, view.scraped_kv_usage == lowest)


@dataclasses.dataclass(frozen=True)
class GatedCentralQueue(Stateless):
    """Holds requests at the router until an instance can take the head without preempting.

    The head goes to the instance with the fewest tokens in flight among those whose KV cache would be filled to at
    most `kv_share` and that have at most `most_awaiting` requests without a first token. An instance with nothing in
    flight is always open.

    Attributes:
      name: what it is called.
      kv_share: largest share of the KV cache that the tokens in flight, the head's prompt included, may fill.
      most_awaiting: most requests without a first token at an open instance.
    """

    name: str = "gated-central-queue"
    kv_share: float = 0.8
    most_awaiting: int = 3

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        filled = (view.in_flight_tokens + view.head_prompt_tokens).astype(jnp.float32)
        has_room = filled <= self.kv_share * view.kv_tokens.astype(jnp.float32)
        is_open = (has_room & (view.awaiting_first <= self.most_awaiting)) | (view.in_flight == 0)
        return least(view, view.in_flight_tokens, is_open)
