"""Double deep Q-learning, the algorithm of Jain et al. (appendix A.9): all on the device, one compiled program.

An update lets every lane go on for a rollout and writes it to the lane's replay memory (`replay`), then takes `passes`
gradient steps, each on a batch of which every lane's memory gives an equal share. Network, observation, validation and
the policy folder are those of the other algorithms; the policy's logits are the Q values.

Axis letters: E lanes of a group, T intervals of a rollout, S samples of a lane, K seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxroute.devices import AXIS
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.observation import Observed
from jaxroute.policies import HEURISTICS
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train import replay
from jaxroute.train.config import TrainConfig
from jaxroute.train.dqn_play import Explorers, Played, Transition, explore
from jaxroute.train.dqn_target import Return, chosen, double_target, huber, returns
from jaxroute.train.normalise import RunningScales
from jaxroute.train.optimiser import lenient
from jaxroute.train.prior import with_prior
from jaxroute.train.rollout import action_logits
from jaxroute.train.scorers import make_network
from jaxroute.train.stagger import staggered
from jaxroute.train.state import Lanes, Params
from jaxroute.train.update import penalty_weight


class DqnState(struct.PyTreeNode):
    """A run between two updates.

    Attributes:
      policy: weights of the Q network.
      target: those of the target network.
      optimiser: optax state.
      scales: of the features.
      groups: lanes of each group of fleets.
      memories: of each group, [E, C] leaves.
      update: [] int32, updates so far.
      key: typed key of the run.
    """

    policy: Params
    target: Params
    optimiser: optax.OptState
    scales: RunningScales
    groups: tuple[Explorers, ...]
    memories: tuple[Transition, ...]
    update: jax.Array
    key: jax.Array


class DqnMetrics(NamedTuple):
    """Of one update; every field [] float32.

    Attributes:
      reward: mean reward of an interval without the mixing penalty, in `dqn.reward_unit`.
      value_loss: of the batches, mean.
      value: mean Q value of the actions in the batches, in `dqn.reward_unit`.
      gradient_norm: before it is clipped, mean.
      exploration: mean chance of a random action.
      discount: factor of an interval of the first group.
      penalty_weight: of the mixing penalty.
      hold_share: share of the decisions that hold.
      busiest: most over mean dispatches of an instance, the largest of the groups.
      decisions: share of the intervals with something to decide.
      preemptions: per lane.
    """

    reward: jax.Array
    value_loss: jax.Array
    value: jax.Array
    gradient_norm: jax.Array
    exploration: jax.Array
    discount: jax.Array
    penalty_weight: jax.Array
    hold_share: jax.Array
    busiest: jax.Array
    decisions: jax.Array
    preemptions: jax.Array


class Learning(NamedTuple):
    """What a gradient step changes. Attributes: policy, target, optimiser: see `DqnState`."""

    policy: Params
    target: Params
    optimiser: optax.OptState


class Losses(NamedTuple):
    """Of a gradient step, [] float32 each. Attributes: loss, value, norm: see `DqnMetrics`."""

    loss: jax.Array
    value: jax.Array
    norm: jax.Array


@dataclasses.dataclass(frozen=True)
class DqnLearner:
    """The static parts of a run (hashable: a jit argument).

    Attributes:
      config: the run's.
      envs: environment of each group.
      network: of the Q values.
      optimiser: optax transformation.
      updates: of the whole run.
      axis: mesh axis over which lanes are spread, or None.
    """

    config: TrainConfig
    envs: tuple[ClusterRouting, ...]
    network: Scorer
    optimiser: optax.GradientTransformation
    updates: int
    axis: str | None = None

    @property
    def lanes(self) -> int:
        """Of all groups and devices."""
        return sum(fleets.lanes for fleets in self.config.fleets)

    @property
    def rows(self) -> int:
        """C, of a lane's memory: whole rollouts."""
        own = self.config.dqn
        return own.replay // (self.lanes * own.rollout) * own.rollout

    def discount(self, group: int, guidance: jax.Array) -> jax.Array:
        """[] float32, factor of an interval of a group, where the mixing penalty has the weight `guidance`."""
        reward = self.config.reward
        whole = jnp.float32(math.exp(-self.config.fleets[group].dt / reward.horizon_s))
        myopic = self.config.dqn.myopic_start and reward.guidance == "decaying"
        return whole * (1 - guidance) if myopic else whole

    def total(self, value: Any) -> Any:
        """Sums over the devices."""
        return value if self.axis is None else jax.lax.psum(value, self.axis)


def steps_of_an_update(config: TrainConfig) -> int:
    """Router intervals of all lanes in one update."""
    return sum(fleets.lanes for fleets in config.fleets) * config.dqn.rollout


def make_learner(config: TrainConfig, envs: tuple[ClusterRouting, ...]) -> DqnLearner:
    """The static parts of a run."""
    own = config.dqn
    updates = max(1, round(own.total_steps / steps_of_an_update(config)))
    rate = optax.linear_schedule(own.learning_rate, own.final_learning_rate, updates * own.passes)
    adam = optax.chain(optax.clip_by_global_norm(own.max_grad_norm), optax.adam(rate))
    return DqnLearner(config, envs, make_network(config.network, envs[0]), lenient(adam), updates)


@partial(jax.jit, static_argnames=("learner",))
def initial_state(learner: DqnLearner, params: tuple[EnvParams, ...], key: jax.Array) -> DqnState:
    """A run before its first update; arguments as in `ppo.initial_state`."""
    key_policy, key_lanes, key_run = jax.random.split(key, 3)
    groups, seen, first = [], [], 0
    for env, own in zip(learner.envs, params, strict=True):
        count = own.penalty_weight.shape[0]
        number = jnp.arange(first, first + count, dtype=jnp.int32)
        first += count
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_lanes, number)
        _, states = jax.vmap(env.reset_env)(keys, own)
        states = staggered(env, HEURISTICS["round-robin"], own, states, key_lanes)
        lanes = Lanes(number=number, env=states, done=jnp.zeros(count, bool), return_scale=jnp.ones(count))
        groups.append(Explorers(lanes=lanes, episode=jnp.zeros(count, jnp.int32)))
        seen.append(jax.vmap(env.observed)(states, own))
    router, features = seen[0].router.shape[-1], seen[0].instances.shape[-1]
    policy = learner.network.init(key_policy, seen[0], FeatureScales.identity(router, features))
    policy = with_prior(policy, learner.config.network)
    return DqnState(
        policy=policy,
        # Buffers of its own, as both are handed on to be used up.
        target=jax.tree.map(jnp.copy, policy),
        optimiser=learner.optimiser.init(policy),
        scales=RunningScales.nothing(router, features),
        groups=tuple(groups),
        memories=tuple(replay.empty(_row(observed), learner.rows) for observed in seen),
        update=jnp.int32(0),
        key=key_run,
    )


def _row(observed: Observed) -> Transition:
    """One row of every lane's memory, [E] leaves, of which only shapes and types count."""
    count = observed.mask.shape[0]
    number, flag = jnp.zeros(count), jnp.zeros(count, bool)
    return Transition(observed, number.astype(jnp.int32), number, number, flag, flag, flag)


@partial(jax.jit, static_argnames=("learner", "mesh", "count"), donate_argnames=("states",))
def run_updates(
    learner: DqnLearner, params: tuple[EnvParams, ...], states: DqnState, *, mesh: jax.sharding.Mesh, count: int
) -> tuple[DqnState, DqnMetrics]:
    """`count` updates of every seed, one compiled program; arguments and results as in `ppo.run_updates`."""
    own = dataclasses.replace(learner, axis=AXIS)

    def local(params: tuple[EnvParams, ...], states: DqnState) -> tuple[DqnState, DqnMetrics]:
        def step(now: DqnState, _: None) -> tuple[DqnState, DqnMetrics]:
            # All seeds are at the same update, and so is where they write: one place, not one of each.
            return jax.vmap(partial(update, own), in_axes=(None, 0, None))(params, now, now.update[0])

        return jax.lax.scan(step, states, None, length=count)

    spread, over, whole = state_specs(states), jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()
    program = jax.shard_map(local, mesh=mesh, in_specs=(over, spread), out_specs=(spread, whole), check_vma=False)
    return program(params, states)


def state_specs(states: DqnState) -> DqnState:
    """How the leaves of [K] runs are spread over the mesh: lanes by lane, all else whole on every device."""
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), states)
    by_lane = jax.tree.map(lambda _: jax.sharding.PartitionSpec(None, AXIS), (states.groups, states.memories))
    return specs.replace(groups=by_lane[0], memories=by_lane[1])


def update(
    learner: DqnLearner, params: tuple[EnvParams, ...], state: DqnState, number: jax.Array
) -> tuple[DqnState, DqnMetrics]:
    """Lets every lane go on for a rollout, and learns from what is remembered.

    Args:
      learner: static parts.
      params: of each group's environments, [E] leaves.
      state: the run.
      number: [] int32, its `update`.

    Returns:
      The run after the update, and its metrics.
    """
    own = learner.config.dqn
    key_explore, key_batch = jax.random.split(jax.random.fold_in(state.key, number))
    guidance = penalty_weight(learner.config.reward, number.astype(jnp.float32) / learner.updates)
    groups, rollouts, facts = [], [], []
    for env, each, explorers in zip(learner.envs, params, state.groups, strict=True):
        explorers, transitions, played = explore(
            env,
            each,
            learner.network,
            state.policy,
            state.scales.fixed(),
            explorers,
            key_explore,
            config=own,
            lanes=learner.lanes,
        )
        groups.append(explorers)
        rollouts.append(transitions)
        facts.append(played)
    alive = [each.alive.astype(jnp.float32) for each in rollouts]
    scales = state.scales.updated([each.observed for each in rollouts], alive, learner.axis)
    memories = tuple(
        replay.written(memory, rollout, number * own.rollout)
        for memory, rollout in zip(state.memories, rollouts, strict=True)
    )
    after = state.replace(scales=scales, groups=tuple(groups), memories=memories, update=state.update + 1)
    after, losses = _learned(learner, after, number, guidance, key_batch)
    return after, _metrics(learner, rollouts, facts, losses, guidance)


def _learned(
    learner: DqnLearner, state: DqnState, number: jax.Array, guidance: jax.Array, key: jax.Array
) -> tuple[DqnState, Losses]:
    """The state after the gradient steps of one update, and their mean losses."""
    own = learner.config.dqn
    scales = state.scales.fixed()
    count = (number + 1) * own.rollout

    def one(now: Learning, index: jax.Array) -> tuple[Learning, Losses]:
        key_step = jax.random.fold_in(key, index)
        batches = [
            batch(learner, group, memory, explorers.lanes.number, guidance, count, key_step)
            for group, (memory, explorers) in enumerate(zip(state.memories, state.groups, strict=True))
        ]
        now, losses = learn(learner, now, batches, scales)
        copies = jnp.mod(number * own.passes + index + 1, own.target_every) == 0
        target = jax.tree.map(lambda new, old: jnp.where(copies, new, old), now.policy, now.target)
        return now._replace(target=target), losses

    start = Learning(state.policy, state.target, state.optimiser)
    end, losses = jax.lax.scan(one, start, jnp.arange(own.passes, dtype=jnp.int32))
    return state.replace(**end._asdict()), jax.tree.map(jnp.mean, losses)


class Batch(NamedTuple):
    """Samples of one group; [E, S] leaves. Attributes: before, behind: the rows; action: int32; back: the return."""

    before: Observed
    action: jax.Array
    back: Return
    behind: Observed


def batch(
    learner: DqnLearner,
    group: int,
    memory: Transition,
    lanes: jax.Array,
    guidance: jax.Array,
    count: jax.Array,
    key: jax.Array,
) -> Batch:
    """Random samples of the memory of every lane of a group.

    Args:
      learner: static parts.
      group: its number.
      memory: [E, C] leaves.
      lanes: [E] int32, numbers of the lanes.
      guidance: [] float32, weight of the mixing penalty.
      count: [] int32, rows of a lane that were written so far.
      key: typed key.
    """
    own = learner.config.dqn
    samples = own.batch // learner.lanes
    at = replay.windows(key, lanes, count, rows=learner.rows, samples=samples, length=own.steps + 1)
    before = replay.taken((memory.observed, memory.action), at[..., 0])
    inside = at[..., :-1]
    reward, penalty = replay.taken((memory.reward, memory.penalty), inside)
    if learner.config.reward.kind == "paper":
        reward -= guidance * penalty
    flags = replay.taken((memory.terminated, memory.ended, memory.alive), inside)
    back = returns(reward / own.reward_unit, *flags, learner.discount(group, guidance))
    return Batch(*before, back, replay.taken(memory.observed, at[..., -1]))


def learn(
    learner: DqnLearner, now: Learning, batches: Sequence[Batch], scales: FeatureScales
) -> tuple[Learning, Losses]:
    """One gradient step on the batches of all groups; the target network stays."""
    network = learner.network
    targets = [
        double_target(
            each.back,
            action_logits(network, now.policy, each.behind, scales),
            action_logits(network, now.target, each.behind, scales),
        )
        for each in batches
    ]
    count = jnp.maximum(learner.total(sum(jnp.sum(each.back.weight) for each in batches)), 1)

    def loss(weights: Params) -> tuple[jax.Array, jax.Array]:
        whole, value = jnp.float32(0), jnp.float32(0)
        for each, target in zip(batches, targets, strict=True):
            own = chosen(action_logits(network, weights, each.before, scales), each.action)
            whole += jnp.sum(each.back.weight * huber(own - target))
            value += jnp.sum(each.back.weight * own)
        return whole / count, value / count

    (error, value), gradient = jax.value_and_grad(loss, has_aux=True)(now.policy)
    error, value, gradient = learner.total((error, value, gradient))
    step, optimiser = learner.optimiser.update(gradient, now.optimiser, now.policy)
    losses = Losses(error, value, optax.tree.norm(gradient))
    return Learning(optax.apply_updates(now.policy, step), now.target, optimiser), losses


def _metrics(
    learner: DqnLearner,
    rollouts: Sequence[Transition],
    facts: Sequence[Played],
    losses: Losses,
    guidance: jax.Array,
) -> DqnMetrics:
    def total(values: Sequence[jax.Array]) -> jax.Array:
        return learner.total(jnp.sum(jnp.stack([jnp.sum(value.astype(jnp.float32)) for value in values])))

    decides = [
        each.alive & (jnp.sum(learner.network.allowed(each.observed), axis=-1, dtype=jnp.int32) > 1)
        for each in rollouts
    ]
    holds = [
        own & (each.action == each.observed.mask.shape[-1] - 1) for each, own in zip(rollouts, decides, strict=True)
    ]
    lived, decided = total([each.alive for each in rollouts]), total(decides)
    return DqnMetrics(
        reward=total([jnp.where(each.alive, each.reward, 0) for each in rollouts])
        / (learner.config.dqn.reward_unit * jnp.maximum(lived, 1)),
        value_loss=losses.loss,
        value=losses.value,
        gradient_norm=losses.norm,
        exploration=total([each.exploration for each in facts]) / learner.lanes,
        discount=learner.discount(0, guidance),
        penalty_weight=guidance,
        hold_share=total(holds) / jnp.maximum(decided, 1),
        busiest=jnp.max(jnp.stack([_busiest(learner, *pair) for pair in zip(rollouts, decides, strict=True)])),
        decisions=decided / jnp.maximum(lived, 1),
        preemptions=total([each.preemptions for each in facts]) / learner.lanes,
    )


def _busiest(learner: DqnLearner, rollout: Transition, decides: jax.Array) -> jax.Array:
    """Most dispatches of an instance over their mean, averaged over the lanes; 1 where nothing was sent."""
    instances = rollout.observed.mask.shape[-1] - 1
    sent = jnp.sum(jax.nn.one_hot(rollout.action, instances) * decides[..., None].astype(jnp.float32), axis=1)
    mean = jnp.mean(sent, axis=-1)
    shares = jnp.where(mean > 0, jnp.max(sent, axis=-1) / jnp.maximum(mean, 1e-9), 1)
    lanes = learner.total(jnp.float32(shares.shape[0]))
    return learner.total(jnp.sum(shares)) / lanes
