"""The loop: view, decide, step; compiled as one program over many lanes and many intervals."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.state import ClusterState, StepLog
from jaxroute.cluster.view import router_view
from jaxroute.devices import AXIS
from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.types import ClusterParams, Workload


class Lane(struct.PyTreeNode):
    """One simulation on its way: a fleet, the policy that routes for it, and its randomness.

    Attributes:
      cluster: the fleet.
      policy: the policy's own state.
      key: typed key; the key of interval k is folded from it.
    """

    cluster: ClusterState
    policy: PolicyState
    key: jax.Array


class Trace(struct.PyTreeNode):
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


@partial(jax.jit, static_argnames=("config", "policy", "length"), donate_argnames=("lanes",))
def run_intervals(
    config: ClusterConfig,
    policy: Policy,
    params: ClusterParams,
    workload: Workload,
    lanes: Lane,
    *,
    length: int,
) -> tuple[Lane, Trace | None]:
    """`length` intervals of a batch of lanes.

    Args:
      config: static sizes.
      policy: decides in every lane.
      params: the fleet, shared by the lanes.
      workload: shared by the lanes.
      lanes: every leaf [E]; donated.
      length: T, intervals.

    Returns:
      The lanes afterwards, and where records are kept the trace, [T, E, ...] leaves.
    """
    batched = jax.vmap(partial(interval, config, policy), in_axes=(None, None, 0))
    return jax.lax.scan(lambda now, _: batched(params, workload, now), lanes, None, length=length)


def stack_lanes(lane: Lane, count: int) -> Lane:
    """`count` copies of a lane, [E] leaves."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), lane)


@partial(jax.jit, static_argnames=("config", "policy", "mesh", "chunk", "most_intervals"))
def run_to_end(
    config: ClusterConfig,
    policy: Policy,
    params: ClusterParams,
    workloads: Workload,
    lanes: Lane,
    *,
    mesh: jax.sharding.Mesh,
    chunk: int,
    most_intervals: int,
) -> tuple[Lane, jax.Array]:
    """Runs a batch of lanes, each with its own workload, until every request has finished; keeps no trace.

    The lanes are spread over the devices of `mesh` and run in chunks small enough for a core's cache, the time loop
    inside.

    Args:
      config: static sizes.
      policy: decides in every lane.
      params: the fleet, shared by the lanes.
      workloads: [E] leaves.
      lanes: [E] leaves; E is a multiple of devices times `chunk`.
      mesh: one axis, `lanes`.
      chunk: lanes that run side by side on one device.
      most_intervals: where a run that does not end is cut off.

    Returns:
      The lanes at the end, and the intervals ([E] int32) that each was run for.
    """

    def one_chunk(chunked: tuple[Workload, Lane]) -> tuple[Lane, jax.Array]:
        workload, lane = chunked

        def unfinished(carry: tuple[Lane, jax.Array]) -> jax.Array:
            now, count = carry
            done = jax.vmap(fleet.all_finished)(workload, now.cluster)
            return ~jnp.all(done) & (count < most_intervals)

        def body(carry: tuple[Lane, jax.Array]) -> tuple[Lane, jax.Array]:
            now, count = carry
            step = jax.vmap(partial(interval, config, policy), in_axes=(None, 0, 0))
            return step(params, workload, now)[0], count + 1

        lane, count = jax.lax.while_loop(unfinished, body, (lane, jnp.int32(0)))
        return lane, jnp.broadcast_to(count, (chunk,))

    def one_device(workload: Workload, lane: Lane) -> tuple[Lane, jax.Array]:
        split = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), (workload, lane))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(one_chunk, split))

    spread = jax.sharding.PartitionSpec(AXIS)
    return jax.shard_map(one_device, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)(workloads, lanes)
