"""A gradient step of Double DQN: samples of what is remembered, and what the network should say of them.

Axis letters: E lanes of a group, C rows of a memory, S samples of a lane.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxroute.env import ClusterRouting
from jaxroute.observation import Observed
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train import replay
from jaxroute.train.config import TrainConfig
from jaxroute.train.dqn_play import Transition
from jaxroute.train.dqn_target import Return, chosen, double_target, huber, returns
from jaxroute.train.learner import OnMesh
from jaxroute.train.rollout import action_logits
from jaxroute.train.state import Params


@dataclasses.dataclass(frozen=True)
class DqnLearner(OnMesh):
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

    def guided_discount(self, group: int, guidance: jax.Array) -> jax.Array:
        """[] float32, factor of an interval of a group, where the mixing penalty has the weight `guidance`."""
        reward = self.config.reward
        whole = jnp.float32(self.discount(reward.horizon_s, group))
        myopic = self.config.dqn.myopic_start and reward.guidance == "decaying"
        return whole * (1 - guidance) if myopic else whole


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
    if learner.config.reward.kind != "latency":
        reward -= guidance * penalty
    flags = replay.taken((memory.terminated, memory.ended, memory.alive), inside)
    back = returns(reward / own.reward_unit, *flags, learner.guided_discount(group, guidance))
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
