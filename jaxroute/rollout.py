"""The loop: view, decide, step; compiled as one program over many lanes and many intervals."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.view import router_view
from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.types import ClusterParams, ClusterState, StepLog, Workload


@struct.dataclass
class Lane:
    """One simulation on its way: a fleet, the policy that routes for it, and its randomness.

    Attributes:
      cluster: the fleet.
      policy: the policy's own state.
      key: typed key; the key of interval k is folded from it.
    """

    cluster: ClusterState
    policy: PolicyState
    key: jax.Array


@struct.dataclass
class Trace:
    """What is kept of each interval where records are on; every leaf has a leading [T].

    Attributes:
      router_queue: [T] int32, requests at the router after the interval's dispatch.
      running: [T, I] int32, at the start of the interval.
      waiting: [T, I] int32, at the start of the interval.
      steps: engine steps, [T, I, K] leaves.
    """

    router_queue: jax.Array
    running: jax.Array
    waiting: jax.Array
    steps: StepLog


def start_lane(
    config: ClusterConfig, params: ClusterParams, workload: Workload, policy_state: PolicyState, key: jax.Array
) -> Lane:
    """A lane at interval 0."""
    return Lane(cluster=fleet.initial_state(config, params, workload), policy=policy_state, key=key)


def interval(
    config: ClusterConfig, policy: Policy, params: ClusterParams, workload: Workload, lane: Lane
) -> tuple[Lane, Trace | None]:
    """One router interval of one lane."""
    before = lane.cluster
    view = router_view(config, params, workload, before)
    action, policy_state = policy.act(lane.policy, view, jax.random.fold_in(lane.key, before.now))
    cluster, log = fleet.step(config, params, workload, before, action)
    lane = lane.replace(cluster=cluster, policy=policy_state)
    if log is None:
        return lane, None
    trace = Trace(
        router_queue=before.arrived - cluster.dispatched,
        running=before.engines.running,
        waiting=before.engines.queue.count,
        steps=log,
    )
    return lane, trace


@partial(jax.jit, static_argnames=("config", "policy", "length", "shared_workload"), donate_argnames=("lanes",))
def run_intervals(
    config: ClusterConfig,
    policy: Policy,
    params: ClusterParams,
    workload: Workload,
    lanes: Lane,
    *,
    length: int,
    shared_workload: bool = True,
) -> tuple[Lane, Trace | None]:
    """`length` intervals of a batch of lanes.

    Args:
      config: static sizes.
      policy: decides in every lane.
      params: the fleet, shared by the lanes.
      workload: of all lanes, or with a leading [E] where not `shared_workload`.
      lanes: every leaf [E]; donated.
      length: T, intervals.
      shared_workload: whether all lanes have the same workload.

    Returns:
      The lanes afterwards, and where records are kept the trace, [T, E, ...] leaves.
    """
    batched = jax.vmap(partial(interval, config, policy), in_axes=(None, None if shared_workload else 0, 0))
    return jax.lax.scan(lambda now, _: batched(params, workload, now), lanes, None, length=length)


def stack_lanes(lane: Lane, count: int) -> Lane:
    """`count` copies of a lane, [E] leaves."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), lane)
