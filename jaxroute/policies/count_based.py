"""Heuristics that look at nothing, or at numbers of requests: what today's load balancers do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxroute.policies.choose import is_sent, least, or_hold
from jaxroute.policies.protocol import PolicyState, Stateless
from jaxroute.types import RouterView


@dataclasses.dataclass(frozen=True)
class Random(Stateless):
    """Any instance that is not full."""

    name: str = "random"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        return least(view, jax.random.uniform(key, view.full.shape))


@dataclasses.dataclass(frozen=True)
class RoundRobin(Stateless):
    """One instance after the other; waits for one that is full."""

    name: str = "round-robin"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        return or_hold(view, view.dispatched % view.full.shape[0])


@dataclasses.dataclass(frozen=True)
class JoinShortestQueue(Stateless):
    """Fewest requests in flight, by the router's own count."""

    name: str = "join-shortest-queue"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        return least(view, view.in_flight)


@dataclasses.dataclass(frozen=True)
class PowerOfTwo(Stateless):
    """Of two instances drawn at random, the one with fewer requests in flight (Mitzenmacher, 2001)."""

    name: str = "power-of-two"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        instances = view.full.shape[0]
        if instances == 1:
            return least(view, view.in_flight)
        key_first, key_second = jax.random.split(key)
        first = jax.random.randint(key_first, (), 0, instances)
        second = jax.random.randint(key_second, (), 0, instances - 1)
        second = second + (second >= first).astype(jnp.int32)
        index = jnp.arange(instances, dtype=jnp.int32)
        return least(view, view.in_flight, (index == first) | (index == second))


@dataclasses.dataclass(frozen=True)
class VllmDataParallel:
    """vLLM's own data-parallel balancer: least `4 * waiting + running` of the last scrape.

    As vLLM's client does, every dispatch counts as one more waiting request until the next scrape arrives.
    """

    name: str = "vllm-dp"

    def initial_state(self, instances: int) -> PolicyState:
        """Own dispatches since the scrape ([I] int32), and the age it had an interval ago ([] float32, seconds)."""
        return jnp.zeros(instances, jnp.int32), jnp.float32(jnp.inf)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        del key
        added, age_before = state
        # A scrape that has not aged since the last interval is a new one, and has counted what was sent before it.
        added = jnp.where(view.scraped_age <= age_before, 0, added)
        action = least(view, 4 * (view.scraped_waiting + added) + view.scraped_running)
        return action, (added + is_sent(view, action), view.scraped_age)
