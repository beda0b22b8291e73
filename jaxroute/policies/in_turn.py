"""One policy at several routers that share nothing: each has a state of the policy's own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.types import RouterView


@dataclasses.dataclass(frozen=True)
class InTurn:
    """Decides as `policy` does, with the state of the router whose view it is given.

    Attributes:
      policy: runs at every router.
      routers: R.
    """

    policy: Policy
    routers: int

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    def initial_state(self, instances: int) -> PolicyState:
        """The policy's, [R] leaves."""
        one = jax.tree.map(jnp.asarray, self.policy.initial_state(instances))
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.routers, *leaf.shape)), one)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        action, own = self.policy.act(jax.tree.map(lambda leaf: leaf[view.router], state), view, key)
        return action, jax.tree.map(lambda leaves, leaf: leaves.at[view.router].set(leaf), state, own)


def in_turn(policy: Policy, routers: int) -> Policy:
    """The policy at each of `routers` routers; itself where there is one."""
    return policy if routers == 1 else InTurn(policy, routers)
