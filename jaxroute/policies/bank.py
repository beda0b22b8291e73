"""Several policies in one compiled program: each lane of a batch picks its own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.types import RouterView


@dataclasses.dataclass(frozen=True)
class PolicyBank:
    """All of `policies` act, and the one whose index the state holds decides. They cost next to nothing."""

    policies: tuple[Policy, ...]
    name: str = "bank"

    def initial_state(self, instances: int) -> PolicyState:
        """The state of a lane that runs the first policy: (index, states); replace the index for another."""
        return jnp.int32(0), tuple(policy.initial_state(instances) for policy in self.policies)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        index, states = state
        outcomes = [policy.act(own, view, key) for policy, own in zip(self.policies, states, strict=True)]
        actions = jnp.stack([action for action, _ in outcomes])
        return actions[index], (index, tuple(own for _, own in outcomes))
