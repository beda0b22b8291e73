"""One update of Double DQN: every lane goes on for a rollout, then gradient steps on what is remembered.

Axis letters: E lanes of a group, T intervals of a rollout.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxroute.env_types import EnvParams
from jaxroute.train import replay
from jaxroute.train.dqn_learn import DqnLearner, Learning, Losses, batch, learn
from jaxroute.train.dqn_play import Played, Transition, explore
from jaxroute.train.dqn_state import DqnMetrics, DqnState
from jaxroute.train.update import penalty_weight


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
        discount=learner.guided_discount(0, guidance),
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
