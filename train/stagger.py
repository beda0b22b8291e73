"""Lanes that start at different points of their episodes, so that every rollout holds all phases of one."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.policies.in_turn import in_turn
from jaxroute.policies.protocol import Policy, PolicyState


@partial(jax.jit, static_argnames=("env", "policy"))
def staggered(env: ClusterRouting, policy: Policy, params: EnvParams, states: EnvState, key: jax.Array) -> EnvState:
    """Lets every lane go on under a heuristic up to a point of its own, evenly spread over the arrivals.

    Args:
      env: the environment.
      policy: the heuristic.
      params: [E] leaves.
      states: [E] leaves, at the start of an episode.
      key: typed key of the heuristic's choices.
    """
    count, policy = states.time.shape[0], in_turn(policy, env.config.routers)
    last = jax.vmap(lambda own, state: own.workloads.visible_step[state.index, _last(own, state)])(params, states)
    until = (last * jnp.arange(count, dtype=jnp.int32)) // count
    picked = jax.vmap(lambda own, state: jax.tree.map(lambda leaf: leaf[state.index][None], own.workloads))
    params = params.replace(workloads=picked(params, states))

    def one(own: EnvParams, state: EnvState, memory: PolicyState, end: jax.Array) -> tuple[EnvState, PolicyState]:
        key_policy, key_step = jax.random.split(jax.random.fold_in(key, state.time))
        action, memory = policy.act(memory, env.view(state, own), key_policy)
        after = env.step_env(key_step, state, action, own)[1]
        return jax.tree.map(lambda new, old: jnp.where(state.time < end, new, old), after, state), memory

    def body(carry: tuple[EnvState, PolicyState]) -> tuple[EnvState, PolicyState]:
        return jax.vmap(one)(params, *carry, until)

    memory = policy.initial_state(env.instances)
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), memory)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[0].time < until), body, (states, memory))[0]


def _last(params: EnvParams, state: EnvState) -> jax.Array:
    return params.workloads.num_requests[state.index] - 1
