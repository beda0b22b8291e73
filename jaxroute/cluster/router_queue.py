"""The router's own queue: who is its head, and who has joined or left it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster.config import ClusterConfig, RouterOrder
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.slots import first_index
from jaxroute.cluster.state import ClusterState
from jaxroute.types import NEVER, Workload


def empty_router_queue(config: ClusterConfig, requests: int) -> jax.Array | None:
    """`ClusterState.held` before the first arrival."""
    return None if config.router_order is RouterOrder.FCFS else jnp.full(requests, NEVER, jnp.int32)


def head_of(workload: Workload, state: ClusterState) -> jax.Array:
    """[] int32, the request whose turn it is; some request where the queue is empty."""
    if state.held is None:
        return jnp.minimum(state.dispatched, workload.prompt_tokens.shape[0] - 1)
    return first_index(state.held == jnp.min(state.held))


def leave(state: ClusterState, request: jax.Array, wanted: jax.Array) -> ClusterState:
    """Takes the head out of the queue, where `wanted`."""
    held = state.held
    if held is not None:
        held = held.at[jnp.where(wanted, request, held.shape[0])].set(NEVER, mode="drop")
    return state.replace(dispatched=state.dispatched + wanted.astype(jnp.int32), held=held)


def receive(workload: Workload, state: ClusterState) -> ClusterState:
    """Lets in the requests that have reached the router by the start of interval `now`."""
    last = workload.visible_step.shape[0] - 1
    Carry = tuple[jax.Array, jax.Array | None]

    def more(carry: Carry) -> jax.Array:
        here = workload.visible_step[jnp.minimum(carry[0], last)] <= state.now
        return (carry[0] < workload.num_requests) & here

    def one(carry: Carry) -> Carry:
        arrived, held = carry
        wanted = more(carry)
        if held is not None:
            row = jnp.where(wanted, arrived, held.shape[0])
            held = held.at[row].set(workload.priority[jnp.minimum(arrived, last)], mode="drop")
        return arrived + wanted.astype(jnp.int32), held

    arrived, held = repeat_while(more, one, (state.arrived, state.held))
    return state.replace(arrived=arrived, held=held)
