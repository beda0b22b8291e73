"""What a routing policy is: a pure function from what the router can know to where the head of its queue goes."""

from __future__ import annotations

import abc
from typing import Any, Protocol, runtime_checkable

import jax

from jaxroute.types import RouterView

PolicyState = Any
"""A pytree of the policy's own; `()` where it has none."""


@runtime_checkable
class Policy(Protocol):
    """A routing policy. Instances are hashable, so that they can be static arguments of a compiled program."""

    @property
    def name(self) -> str:
        """What the policy is called in tables and files."""
        ...

    def initial_state(self, instances: int) -> PolicyState:
        """The policy's own state before the first interval, for a fleet of `instances`."""
        ...

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """Decides for one interval.

        Args:
          state: the policy's own state.
          view: what the router can know.
          key: typed random key, consumed.

        Returns:
          The action ([] int32: an instance 0..I-1, or I = hold) and the policy's next state.
        """
        ...


class Stateless(abc.ABC):
    """A policy without a state of its own: one function of the view decides."""

    def initial_state(self, instances: int) -> PolicyState:
        """No state."""
        del instances
        return ()

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        return self.choose(view, key), state

    @abc.abstractmethod
    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """The action, [] int32: an instance, or I = hold. A typed key is there to be consumed."""
