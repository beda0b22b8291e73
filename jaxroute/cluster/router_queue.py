"""The router's own queue: who is its head, and who has joined or left it.

Of several routers each has a queue of its own, and everything here is of the one whose turn it is.
"""

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
    last = workload.prompt_tokens.shape[0] - 1
    router, routers = acting(state)
    if state.held is None:
        first = state.dispatched if state.sent is None else router + routers * state.sent[router]
        return jnp.minimum(first, last)
    if state.sent is None:
        return first_index(state.held == jnp.min(state.held))
    own = jnp.arange(last + 1, dtype=jnp.int32) % routers == router
    held = jnp.where(own, state.held, NEVER)
    # Where the queue is empty, the lowest is that of another router's request.
    return jnp.minimum(first_index(own & (held == jnp.min(held))), last)


def acting(state: ClusterState) -> tuple[jax.Array, int]:
    """The router whose turn it is ([] int32), and how many there are."""
    routers = 1 if state.sent is None else state.sent.shape[0]
    return state.now % routers, routers


def sent_by_router(state: ClusterState) -> jax.Array:
    """[] int32, requests that the router has sent so far."""
    return state.dispatched if state.sent is None else state.sent[acting(state)[0]]


def waiting_at_router(state: ClusterState) -> jax.Array:
    """[] int32, requests that have reached the router and are not sent."""
    if state.sent is None:
        return state.arrived - state.dispatched
    router, routers = acting(state)
    received = (state.arrived + (routers - 1) - router) // routers
    return received - sent_by_router(state)


def are_at_router(workload: Workload, state: ClusterState) -> jax.Array:
    """[N] bool, requests that have reached a router, whichever it is, and are not sent."""
    if state.held is not None:
        return state.held != NEVER
    request = jnp.arange(workload.prompt_tokens.shape[0], dtype=jnp.int32)
    if state.sent is None:
        return (request >= state.dispatched) & (request < state.arrived)
    routers = state.sent.shape[0]
    return (request // routers >= state.sent[request % routers]) & (request < state.arrived)


def leave(state: ClusterState, request: jax.Array, wanted: jax.Array) -> ClusterState:
    """Takes the head out of the queue, where `wanted`."""
    held = state.held
    if held is not None:
        held = held.at[jnp.where(wanted, request, held.shape[0])].set(NEVER, mode="drop")
    one = wanted.astype(jnp.int32)
    sent = None if state.sent is None else state.sent.at[acting(state)[0]].add(one)
    return state.replace(dispatched=state.dispatched + one, held=held, sent=sent)


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
