"""Evolution strategies on whole episodes: the other way to train the network, and a cross-check of what is reachable.

A decision's effect lasts a minute and is a hundredth of the noise of its episode. Perturbing the weights instead of the
actions keeps a change of behaviour for a whole episode, and every perturbed policy plays the same requests (common
random numbers), so that the ranks of their costs say which changes help (Salimans et al., 2017).

Axis letters: P mirrored pairs, E lanes of a group, M workloads of a lane, D weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxroute.cluster.config import RouterOrder
from jaxroute.devices import AXIS
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.policies import heuristic
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.config import EvolutionConfig
from jaxroute.train.episode import Greedy, Outcome, play
from jaxroute.train.optimiser import lenient
from jaxroute.train.reach import reach_of
from jaxroute.train.state import Params

REFERENCE = "round-robin"
"""What costs are relative to, its requests in order of arrival whatever the order of the group."""

UNFINISHED = 100.0
"""Cost of an episode that did not end."""

Given = tuple[EnvParams, jax.Array, Outcome, FeatureScales, jax.Array]
"""What all members of a generation share in one group: parameters ([E] leaves), the workload that each lane plays ([E]
int32), what it costs under the reference ([E] leaves), the scales of the features, and a key."""


class EvolutionState(struct.PyTreeNode):
    """A run between two generations.

    Attributes:
      policy: the scorer's weights.
      reach: [D] float32, how far one unit of noise moves each weight (see `reach`); it does not change.
      optimiser: optax state, of the flat weights [D] in units of their reach.
      scales: of the policy's features; they do not change.
      generation: [] int32, generations so far.
      key: typed key of the run.
    """

    policy: Params
    reach: jax.Array
    optimiser: optax.OptState
    scales: FeatureScales
    generation: jax.Array
    key: jax.Array


class Progress(NamedTuple):
    """Of one generation; [] float32 each.

    Attributes:
      cost: mean cost of the perturbed policies; 1 is as good as the reference.
      best: mean cost of the best of them.
      spread: standard deviation of their mean costs.
      step: length of the step over that of the weights.
      incomplete: share of their episodes that did not end.
    """

    cost: jax.Array
    best: jax.Array
    spread: jax.Array
    step: jax.Array
    incomplete: jax.Array


@dataclasses.dataclass(frozen=True)
class Evolver:
    """The static parts of a run (hashable: a jit argument).

    Attributes:
      config: the run's.
      envs: environment of each group.
      network: the policy's.
      optimiser: optax transformation of the flat weights.
    """

    config: EvolutionConfig
    envs: tuple[ClusterRouting, ...]
    network: Scorer
    optimiser: optax.GradientTransformation


def make_evolver(config: EvolutionConfig, envs: tuple[ClusterRouting, ...], network: Scorer) -> Evolver:
    """The static parts of a run."""
    rate = optax.linear_schedule(config.learning_rate, config.learning_rate / 10, max(1, config.generations))
    return Evolver(config, envs, network, lenient(optax.adam(rate, b1=0.9, b2=0.99)))


def initial_evolution(evolver: Evolver, policy: Params, scales: FeatureScales, key: jax.Array) -> EvolutionState:
    """A run before its first generation, from a policy and the scales of its features on."""
    reach = reach_of(policy, scales, evolver.config.path)
    return EvolutionState(policy, reach, evolver.optimiser.init(reach), scales, jnp.int32(0), key)


@partial(jax.jit, static_argnames=("env", "mesh"))
def references(env: ClusterRouting, params: EnvParams, *, mesh: jax.sharding.Mesh) -> Outcome:
    """What every workload of every lane costs under the reference; [E, M] leaves.

    Args:
      env: of the group.
      params: [E] leaves; E is a multiple of the devices.
      mesh: one axis, `lanes`.
    """
    config = dataclasses.replace(env.config, router_order=RouterOrder.FCFS)
    ordered = dataclasses.replace(env, config=config)

    def local(own: EnvParams) -> Outcome:
        def each(index: jax.Array) -> Outcome:
            lanes = jnp.full(own.penalty_weight.shape, index)
            return play(ordered, heuristic(REFERENCE), own, lanes, jax.random.key(0), records=True)

        count = own.workloads.num_requests.shape[1]
        outcomes = jax.lax.map(each, jnp.arange(count, dtype=jnp.int32))
        return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), outcomes)

    over = jax.sharding.PartitionSpec(AXIS)
    return jax.shard_map(local, mesh=mesh, in_specs=over, out_specs=over, check_vma=False)(params)


@partial(jax.jit, static_argnames=("evolver", "mesh", "count"))
def run_generations(
    evolver: Evolver,
    params: tuple[EnvParams, ...],
    reference: tuple[Outcome, ...],
    state: EvolutionState,
    *,
    mesh: jax.sharding.Mesh,
    count: int,
) -> tuple[EvolutionState, Progress]:
    """`count` generations, one compiled program.

    Args:
      evolver: static parts.
      params: of each group's environments, [E] leaves.
      reference: of each group, [E, M] leaves (see `references`).
      state: the run.
      mesh: one axis, `lanes`, over which the perturbed policies are spread; its size divides 2 P.
      count: generations.

    Returns:
      The run afterwards, and the progress, [count] leaves.
    """
    step = partial(_generation, evolver, params, reference, mesh=mesh)
    return jax.lax.scan(lambda now, _: step(now), state, None, length=count)


def _generation(
    evolver: Evolver,
    params: tuple[EnvParams, ...],
    reference: tuple[Outcome, ...],
    state: EvolutionState,
    *,
    mesh: jax.sharding.Mesh,
) -> tuple[EvolutionState, Progress]:
    config = evolver.config
    key_noise, key_index, key_play = jax.random.split(jax.random.fold_in(state.key, state.generation), 3)
    flat, unravel = ravel_pytree(state.policy)
    noise = jax.random.normal(key_noise, (config.pairs, flat.shape[0]))
    apart = config.sigma * state.reach[None] * noise
    members = jnp.concatenate([flat[None] + apart, flat[None] - apart])
    costs = []
    for number, (env, own, known) in enumerate(zip(evolver.envs, params, reference, strict=True)):
        index = _workloads_of(own, jax.random.fold_in(key_index, number))
        judge = partial(_cost_of, evolver, env, unravel=unravel)
        costs.append(_spread(judge, members, (own, index, _picked(known, index), state.scales, key_play), mesh))
    cost_of = jnp.concatenate(costs, axis=1)
    rank = jnp.mean(centred_ranks(cost_of), axis=1)
    gradient = (rank[: config.pairs] - rank[config.pairs :]) @ noise / (config.pairs * config.sigma)
    step, optimiser = evolver.optimiser.update(gradient, state.optimiser, jnp.zeros_like(flat))
    step = state.reach * step
    after = state.replace(policy=unravel(flat + step), optimiser=optimiser, generation=state.generation + 1)
    means = jnp.mean(jnp.minimum(cost_of, UNFINISHED), axis=1)
    return after, Progress(
        cost=jnp.mean(means),
        best=jnp.min(means),
        spread=jnp.std(means),
        step=jnp.linalg.norm(step) / jnp.linalg.norm(flat),
        incomplete=jnp.mean((cost_of >= UNFINISHED).astype(jnp.float32)),
    )


def cost(outcome: Outcome, reference: Outcome, tail_weight: float) -> jax.Array:
    """What is minimised, relative to a reference on the same requests: 1 is as good as it; [...] float32.

    The mean E2E latency, and `tail_weight` times what latencies exceed the reference's 99th percentile by; a run that
    did not end costs most.
    """
    latency = (outcome.e2e_mean + tail_weight * outcome.late_mean) / reference.e2e_mean
    return jnp.where(outcome.complete > 0, latency, UNFINISHED)


def centred_ranks(costs: jax.Array) -> jax.Array:
    """Ranks along the first axis, scaled to [-0.5, 0.5]; equal costs get equal ranks. Shape as `costs`, [P, ...]."""
    below = jnp.sum(costs[None] < costs[:, None], axis=1, dtype=jnp.float32)
    equal = jnp.sum(costs[None] == costs[:, None], axis=1, dtype=jnp.float32)
    return (below + (equal - 1) / 2) / (costs.shape[0] - 1) - 0.5


def _cost_of(
    evolver: Evolver,
    env: ClusterRouting,
    member: jax.Array,
    given: Given,
    *,
    unravel: Callable[[jax.Array], Params],
) -> jax.Array:
    """[E] float32, what one perturbed policy costs in every lane of a group."""
    params, index, reference, scales, key = given
    late = (reference.e2e_p99 / params.cluster.dt.seconds).astype(jnp.int32)
    instances = params.cluster.instances
    instances = instances.replace(late_after=jnp.broadcast_to(late[:, None], instances.late_after.shape))
    params = params.replace(cluster=params.cluster.replace(instances=instances))
    policy = Greedy(evolver.network, env.observation, unravel(member), scales)
    return cost(play(env, policy, params, index, key), reference, evolver.config.tail_weight)


def _spread(
    judge: Callable[[jax.Array, Given], jax.Array], members: jax.Array, given: Given, mesh: jax.sharding.Mesh
) -> jax.Array:
    """[2 P, E] float32: the members over the devices, one after the other on each, so that lanes share weights."""
    over, whole = jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()

    def local(members: jax.Array, given: Given) -> jax.Array:
        return jax.lax.map(lambda member: judge(member, given), members)

    program = jax.shard_map(local, mesh=mesh, in_specs=(over, whole), out_specs=over, check_vma=False)
    return program(members, given)


def _workloads_of(params: EnvParams, key: jax.Array) -> jax.Array:
    lanes, count = params.workloads.num_requests.shape
    return jax.random.randint(key, (lanes,), 0, count)


def _picked(outcomes: Outcome, index: jax.Array) -> Outcome:
    return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index[:, None], axis=1)[:, 0], outcomes)
