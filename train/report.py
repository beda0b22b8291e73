"""What is kept of an update: a few scalars, so that the metrics of a long run stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxroute.train.loss import Batch, PolicyLoss
from jaxroute.train.rollout import Experience
from jaxroute.train.state import Lanes

Total = Callable[[Any], Any]
"""Sums a pytree over the devices."""


class Metrics(NamedTuple):
    """Of one update; every field [] float32 unless said.

    Attributes:
      reward: mean reward of an interval in units of its lane's scale.
      gain: one less the policy's reward over the twin's, from the same states on; 0 without twins. Above 0 is better
        than the twin.
      control_weight: share of the twin's advantage that was subtracted.
      surrogate, entropy, imitation, kl, clipped: see `PolicyLoss`, means.
      value_loss: of the critic.
      explained: share of the variance of the targets that the critic explains.
      hold_share: share of the decisions that hold.
      busiest: most over mean dispatches of an instance, the largest of the groups.
      idlest: least over mean dispatches of an instance, the least of the groups.
      decisions: share of the intervals with something to decide.
      preemptions: per lane.
    """

    reward: jax.Array
    gain: jax.Array
    control_weight: jax.Array
    surrogate: jax.Array
    entropy: jax.Array
    imitation: jax.Array
    kl: jax.Array
    clipped: jax.Array
    value_loss: jax.Array
    explained: jax.Array
    hold_share: jax.Array
    busiest: jax.Array
    idlest: jax.Array
    decisions: jax.Array
    preemptions: jax.Array


def metrics_of(
    rollouts: Sequence[Experience],
    batches: Sequence[Batch],
    groups: Sequence[Lanes],
    losses: tuple[PolicyLoss, jax.Array],
    control_weight: jax.Array,
    total: Total,
) -> Metrics:
    """The metrics of an update.

    Args:
      rollouts: of each group, [E, T] leaves.
      batches: likewise.
      groups: [E] leaves.
      losses: means of the last pass.
      control_weight: see `Metrics`.
      total: sums over the devices.
    """
    reward = _sum(jnp.sum(r.path.reward / g.return_scale[:, None]) for r, g in zip(rollouts, groups, strict=True))
    alive = _sum(jnp.sum(batch.alive) for batch in batches)
    decided = _sum(jnp.sum(batch.decides) for batch in batches)
    held = _sum(jnp.sum(jnp.where(b.action == b.observed.mask.shape[-1] - 1, b.decides, 0)) for b in batches)
    lanes = jnp.float32(sum(batch.action.shape[0] for batch in batches))
    preempted = _sum(jnp.sum(rollout.preemptions).astype(jnp.float32) for rollout in rollouts)
    sums = total((reward, alive, decided, held, lanes, preempted, _gains(rollouts, groups), _errors(batches, total)))
    reward, alive, decided, held, lanes, preempted, (own, twins), (left, whole) = sums
    shares = [_shares(batch, total) for batch in batches]
    loss, value_loss = losses
    steps = jnp.maximum(decided, 1)
    return Metrics(
        reward=reward / jnp.maximum(alive, 1),
        gain=jnp.where(twins < 0, 1 - own / jnp.minimum(twins, -1e-9), 0),
        control_weight=control_weight,
        surrogate=loss.surrogate,
        entropy=loss.entropy,
        imitation=loss.imitation,
        kl=loss.kl,
        clipped=loss.clipped,
        value_loss=value_loss,
        explained=1 - left / jnp.maximum(whole, 1e-12),
        hold_share=held / steps,
        busiest=jnp.max(jnp.stack([most for most, _ in shares])),
        idlest=jnp.min(jnp.stack([fewest for _, fewest in shares])),
        decisions=decided / jnp.maximum(alive, 1),
        preemptions=preempted / lanes,
    )


def _gains(rollouts: Sequence[Experience], groups: Sequence[Lanes]) -> tuple[jax.Array, jax.Array]:
    """Summed rewards of the policy and of its twins over the same intervals."""
    own, twins = jnp.float32(0), jnp.float32(0)
    for rollout, lanes in zip(rollouts, groups, strict=True):
        if rollout.twin is not None:
            unit = jnp.where(rollout.alive, 1 / lanes.return_scale[:, None], 0)
            own += jnp.sum(unit * rollout.path.reward)
            twins += jnp.sum(unit * rollout.twin.reward)
    return own, twins


def _errors(batches: Sequence[Batch], total: Total) -> tuple[jax.Array, jax.Array]:
    """Squares of what the critic leaves unexplained, and of the targets about their mean."""
    count = total(_sum(jnp.sum(batch.alive) for batch in batches))
    mean = total(_sum(jnp.sum(batch.alive * batch.target) for batch in batches)) / jnp.maximum(count, 1)
    left = _sum(jnp.sum(batch.alive * batch.error**2) for batch in batches)
    return left, _sum(jnp.sum(batch.alive * (batch.target - mean) ** 2) for batch in batches)


def _shares(batch: Batch, total: Total) -> tuple[jax.Array, jax.Array]:
    """Most and least dispatches of an instance over their mean, averaged over the lanes; 1 where nothing was sent."""
    instances = batch.observed.mask.shape[-1] - 1
    one_hot = jax.nn.one_hot(batch.action, instances) * batch.decides[..., None]
    sent = jnp.sum(one_hot, axis=1)
    mean = jnp.mean(sent, axis=-1, keepdims=True)
    shares = jnp.where(mean > 0, sent / jnp.maximum(mean, 1e-9), 1)
    lanes = total(jnp.float32(batch.action.shape[0]))
    return total(jnp.sum(jnp.max(shares, axis=-1))) / lanes, total(jnp.sum(jnp.min(shares, axis=-1))) / lanes


def _sum(terms: Iterable[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack(list(terms)))
