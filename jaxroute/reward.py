"""What a router is rewarded for in one interval: pure functions of the states around it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxroute.cluster.queue import positions
from jaxroute.cluster.router_queue import are_at_router
from jaxroute.cluster.slots import true_left
from jaxroute.cluster.state import ClusterState, EngineState
from jaxroute.types import Workload

Reward = Literal["latency", "paper", "mixing"]
"""What the environment and training can reward."""

COMPLETION_REWARD = 60.0
"""r_w of the paper (appendix A.9.3)."""


def requests_in_system(state: ClusterState) -> jax.Array:
    """[] int32, requests that are visible to the router and not finished."""
    return state.arrived - jnp.sum(state.engines.finished, dtype=jnp.int32)


def latency_reward(workload: Workload, before: ClusterState, after: ClusterState, dt_s: jax.Array) -> jax.Array:
    """Minus the seconds that requests spent in the system during the interval between two states; [] float32.

    Arrivals and finishes count from their own times within the interval, so that the sum over an episode is minus the
    total E2E latency.
    """
    whole = requests_in_system(before).astype(jnp.float32) * dt_s
    arrived = workload.lead_s[after.arrived] - workload.lead_s[before.arrived]
    return -(whole + arrived - jnp.sum(after.engines.finished_early_s))


def paper_reward(
    workload: Workload,
    before: ClusterState,
    after: ClusterState,
    penalty: jax.Array,
    *,
    penalty_weight: jax.Array,
    completion_reward: float = COMPLETION_REWARD,
) -> jax.Array:
    """r_t = - sum_j (1 - f_jt) / T_j + r_w * completions - w_k * h (equation 3 of the paper); [] float32.

    Args:
      workload: with `ideal_s`, the T_j.
      before: the state before the interval.
      after: the state after it; j runs over its unfinished requests.
      penalty: h, the mixing penalty of the action.
      penalty_weight: w_k; 0 is the paper's baseline, 1 its workload-aware and a decaying one its workload-guided RL.
      completion_reward: r_w.
    """
    completions = jnp.sum(after.engines.finished - before.engines.finished, dtype=jnp.int32)
    return (
        -remaining_work(workload, after)
        + completion_reward * completions.astype(jnp.float32)
        - penalty_weight * penalty
    )


def remaining_work(workload: Workload, state: ClusterState) -> jax.Array:
    """Sum over all unfinished requests of (1 - f_j) / T_j, f_j the done part of the estimated output; [] float32."""
    at_instances = jax.vmap(_remaining_at_instance, in_axes=(0, None))(state.engines, workload)
    return jnp.sum(at_instances) + jnp.sum(jnp.where(are_at_router(workload, state), 1 / workload.ideal_s, 0))


def _remaining_at_instance(engine: EngineState, workload: Workload) -> jax.Array:
    slots, queue = engine.slots, engine.queue
    streamed = workload.output_tokens[slots.request] - true_left(engine)
    running = jnp.where(slots.order >= 0, _remaining(workload, slots.request, streamed), 0)
    waits = positions(queue) < queue.count
    waiting = jnp.where(waits, _remaining(workload, queue.request, queue.generated), 0)
    return jnp.sum(running) + jnp.sum(waiting)


def _remaining(workload: Workload, request: jax.Array, streamed: jax.Array) -> jax.Array:
    done = jnp.clip(streamed.astype(jnp.float32) / workload.predicted_tokens[request].astype(jnp.float32), 0, 1)
    return (1 - done) / workload.ideal_s[request]
