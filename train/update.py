"""One update: a rollout of every group, advantages, and epochs of minibatches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.impact import guidance_weight
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.policies.protocol import Policy
from jaxroute.train.advantage import control_weight, discounted_returns, generalised_advantage
from jaxroute.train.config import RewardConfig, TrainConfig
from jaxroute.train.critic import Critic, value_of
from jaxroute.train.learner import OnMesh
from jaxroute.train.loss import Batch, PolicyLoss, critic_loss, policy_loss
from jaxroute.train.report import Metrics, metrics_of
from jaxroute.train.rollout import Experience, Path, action_distribution, collect
from jaxroute.train.state import Lanes, Params, TrainState

SCALE_MEMORY = 0.95
"""Share of a lane's return scale that the next rollout leaves."""


@dataclasses.dataclass(frozen=True)
class Learner(OnMesh):
    """The static parts of a run (hashable: a jit argument).

    Attributes:
      config: the run's.
      envs: environment of each group.
      network, critic: modules.
      policy_optimiser, critic_optimiser: optax transformations.
      teacher: whose actions are noted.
      twin: what routes beside the policy, or None.
      updates: of the whole run.
      axis: mesh axis over which lanes are spread, or None.
    """

    config: TrainConfig
    envs: tuple[ClusterRouting, ...]
    network: Scorer
    critic: Critic
    policy_optimiser: optax.GradientTransformation
    critic_optimiser: optax.GradientTransformation
    teacher: Policy
    twin: Policy | None
    updates: int
    axis: str | None = None


def update(learner: Learner, params: tuple[EnvParams, ...], state: TrainState) -> tuple[TrainState, Metrics]:
    """Lets every lane go on for a rollout, and learns from it.

    Args:
      learner: static parts.
      params: of each group's environments, [E] leaves.
      state: the run.

    Returns:
      The run after the update, and its metrics: scalars only.
    """
    scales = state.scales.fixed()
    key_rollout, key_shuffle = jax.random.split(jax.random.fold_in(state.key, state.update))
    progress = state.update.astype(jnp.float32) / learner.updates
    groups, rollouts = [], []
    for number, (env, own, lanes) in enumerate(zip(learner.envs, params, state.groups, strict=True)):
        lanes, experience = collect(
            env,
            _guided(learner.config, own, progress),
            learner.network,
            state.policy,
            scales,
            lanes,
            key_rollout,
            length=learner.config.ppo.rollout,
            teacher=learner.teacher,
            twin=learner.twin,
        )
        groups.append(_rescaled(learner, number, lanes, experience.path, state.update))
        rollouts.append(experience)
    batches, weight = _batches(learner, state, tuple(groups), rollouts)
    learned, losses = _epochs(learner, state, batches, scales, progress, tuple(groups), key_shuffle)
    alive = [batch.alive for batch in batches]
    after = learned.replace(
        scales=state.scales.updated([each.observed for each in rollouts], alive, learner.axis),
        groups=tuple(groups),
        update=state.update + 1,
    )
    return after, metrics_of(rollouts, batches, groups, losses, weight, learner.total)


def penalty_weight(config: RewardConfig, progress: jax.Array) -> jax.Array:
    """[] float32, the weight of the mixing penalty at a point of the run, a share of it."""
    if config.guidance == "decaying":
        return guidance_weight(progress * config.guidance_episodes, jnp)
    return jnp.float32(1 if config.guidance == "constant" else 0)


def _guided(config: TrainConfig, params: EnvParams, progress: jax.Array) -> EnvParams:
    """The parameters with the mixing penalty's weight of this point of the run."""
    weight = penalty_weight(config.reward, progress)
    return params.replace(penalty_weight=jnp.broadcast_to(weight, params.penalty_weight.shape))


def _rescaled(learner: Learner, group: int, lanes: Lanes, path: Path, updates: jax.Array) -> Lanes:
    """The lanes with the scale of their returns moved towards that of this rollout."""
    discount = learner.discount(learner.config.reward.horizon_s, group)
    returns = jax.vmap(lambda reward, ended: discounted_returns(reward, ended, discount))(path.reward, path.ended)
    seen = jnp.sqrt(jnp.mean(returns**2, axis=-1))
    memory = jnp.where(updates == 0, 0, SCALE_MEMORY)
    return lanes.replace(return_scale=jnp.maximum(memory * lanes.return_scale + (1 - memory) * seen, 1e-3))


def _batches(
    learner: Learner, state: TrainState, groups: tuple[Lanes, ...], rollouts: list[Experience]
) -> tuple[tuple[Batch, ...], jax.Array]:
    """What there is to learn from in each group, [E, T] leaves, and the weight of the twins' advantages."""
    raw = [_advantages(learner, state, number, *pair) for number, pair in enumerate(zip(groups, rollouts, strict=True))]
    decides = [_decides(learner, each) for each in rollouts]
    if learner.twin is None:
        weight = jnp.float32(0)
        advantages = [own for own, _, _ in raw]
    else:
        flat = [jnp.concatenate([leaf.reshape(-1) for leaf in leaves]) for leaves in zip(*raw, strict=True)]
        weights = jnp.concatenate([each.reshape(-1) for each in decides])
        weight = control_weight(flat[0], flat[2], weights, learner.axis)
        advantages = [own - weight * twin for own, _, twin in raw]
    mean, std = _mean_std(learner, advantages, decides)
    batches = []
    for each, one, advantage, decision in zip(rollouts, raw, advantages, decides, strict=True):
        batches.append(
            Batch(
                observed=each.observed,
                judged=jax.tree.map(lambda leaf: leaf[:, :-1], each.path.judged),
                action=each.action,
                log_prob=each.log_prob,
                teacher=each.teacher,
                advantage=(advantage - mean) / std,
                target=one[1],
                error=one[0],
                alive=each.alive.astype(jnp.float32),
                decides=decision,
            )
        )
    return tuple(batches), weight


def _advantages(
    learner: Learner, state: TrainState, group: int, lanes: Lanes, experience: Experience
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[E, T] each: the policy's advantages, the critic's targets, and the twin's advantages (0 without twins)."""

    def one(path: Path) -> tuple[jax.Array, jax.Array]:
        value = value_of(learner.critic, state.critic, path.judged)
        advantage = jax.vmap(
            lambda reward, values, terminated, ended: generalised_advantage(
                reward,
                values,
                terminated,
                ended,
                discount=learner.discount(learner.config.reward.horizon_s, group),
                decay=learner.discount(learner.config.ppo.gae_s, group),
            )
        )(path.reward / lanes.return_scale[:, None], value, path.terminated, path.ended)
        return advantage, advantage + value[:, :-1]

    own, target = one(experience.path)
    twin = jnp.zeros_like(own) if experience.twin is None else one(experience.twin)[0]
    return own, target, twin


def _decides(learner: Learner, experience: Experience) -> jax.Array:
    """[E, T] float32, 1 where an action was chosen out of several."""
    choices = jnp.sum(learner.network.allowed(experience.observed), axis=-1, dtype=jnp.int32)
    return (experience.alive & (choices > 1)).astype(jnp.float32)


def _mean_std(learner: Learner, values: list[jax.Array], weights: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Weighted mean and standard deviation over all groups and devices; [] float32 each."""
    pairs = list(zip(values, weights, strict=True))
    count = jnp.maximum(learner.total(sum(jnp.sum(weight) for weight in weights)), 1)
    mean = learner.total(sum(jnp.sum(weight * value) for value, weight in pairs)) / count
    square = learner.total(sum(jnp.sum(weight * (value - mean) ** 2) for value, weight in pairs)) / count
    return mean, jnp.sqrt(square) + 1e-8


def _epochs(
    learner: Learner,
    state: TrainState,
    batches: tuple[Batch, ...],
    scales: FeatureScales,
    progress: jax.Array,
    groups: tuple[Lanes, ...],
    key: jax.Array,
) -> tuple[TrainState, tuple[PolicyLoss, jax.Array]]:
    """Passes over the batches in minibatches; returns the state and the mean losses of the last pass."""
    ppo = learner.config.ppo

    def minibatch(carry: TrainState, part: tuple[Batch, ...]) -> tuple[TrainState, tuple[PolicyLoss, jax.Array]]:
        return _learn(learner, carry, part, scales, progress)

    def epoch(carry: TrainState, number: jax.Array) -> tuple[TrainState, tuple[PolicyLoss, jax.Array]]:
        key_epoch = jax.random.fold_in(key, number)
        parts = tuple(_shuffled(b, g.number, key_epoch, ppo.minibatches) for b, g in zip(batches, groups, strict=True))
        return jax.lax.scan(minibatch, carry, parts)

    state, losses = jax.lax.scan(epoch, state, jnp.arange(ppo.epochs, dtype=jnp.int32))
    return state, jax.tree.map(lambda leaf: jnp.mean(leaf[-1], axis=0), losses)


def _shuffled(batch: Batch, numbers: jax.Array, key: jax.Array, parts: int) -> Batch:
    """Minibatches, [parts, E, T / parts] leaves: every lane's steps in a random order of its own."""

    def one(lane: Batch, number: jax.Array) -> Batch:
        order = jax.random.permutation(jax.random.fold_in(key, number), lane.action.shape[0])
        return jax.tree.map(lambda leaf: leaf[order].reshape(parts, -1, *leaf.shape[1:]), lane)

    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), jax.vmap(one)(batch, numbers))


def _learn(
    learner: Learner, state: TrainState, part: tuple[Batch, ...], scales: FeatureScales, progress: jax.Array
) -> tuple[TrainState, tuple[PolicyLoss, jax.Array]]:
    """One step of both optimisers; returns the state and the mean losses of the minibatch."""
    ppo = learner.config.ppo
    entropy_weight = ppo.entropy + progress * (ppo.final_entropy - ppo.entropy)
    teacher_weight = ppo.teacher_weight * jnp.maximum(1 - progress / max(ppo.teacher_share, 1e-6), 0)
    if ppo.teacher == "none":
        teacher_weight = jnp.float32(0)
    deciding = jnp.maximum(learner.total(sum(jnp.sum(batch.decides) for batch in part)), 1)
    living = jnp.maximum(learner.total(sum(jnp.sum(batch.alive) for batch in part)), 1)

    def of_policy(weights: Params) -> tuple[jax.Array, PolicyLoss]:
        sums = [
            policy_loss(action_distribution(learner.network, weights, batch.observed, scales), batch, ppo.clip)
            for batch in part
        ]
        loss = jax.tree.map(lambda *terms: sum(terms) / deciding, *sums)
        whole = loss.surrogate - entropy_weight * loss.entropy + teacher_weight * loss.imitation
        return whole, loss

    def of_critic(weights: Params) -> jax.Array:
        losses = [critic_loss(value_of(learner.critic, weights, batch.judged), batch) for batch in part]
        return sum(losses, jnp.float32(0)) / living

    (_, loss), gradient = jax.value_and_grad(of_policy, has_aux=True)(state.policy)
    error, critic_gradient = jax.value_and_grad(of_critic)(state.critic)
    gradient, critic_gradient, loss, error = learner.total((gradient, critic_gradient, loss, error))
    step, policy_state = learner.policy_optimiser.update(gradient, state.policy_optimiser, state.policy)
    critic_step, critic_state = learner.critic_optimiser.update(critic_gradient, state.critic_optimiser, state.critic)
    state = state.replace(
        policy=optax.apply_updates(state.policy, step),
        critic=optax.apply_updates(state.critic, critic_step),
        policy_optimiser=policy_state,
        critic_optimiser=critic_state,
    )
    return state, (loss, error)
