"""The losses of one minibatch, as sums over its steps, so that groups and devices add up to one mean."""

from __future__ import annotations

from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp

from jaxroute.observation import Observed
from jaxroute.train.critic import Judged

MASKED = -1e30
"""Log-probabilities below it are of masked actions."""


class Batch(NamedTuple):
    """Steps to learn from; leading axes [...].

    Attributes:
      observed: what the policy saw.
      judged: what the critic saw.
      action: int32.
      log_prob: float32, when the action was taken.
      teacher: int32.
      advantage: float32, normalised.
      target: float32, of the critic.
      error: float32, the target less what the critic said.
      alive: float32, 1 where the step belongs to an episode.
      decides: float32, 1 where in addition there was more than one action to choose from.
    """

    observed: Observed
    judged: Judged
    action: jax.Array
    log_prob: jax.Array
    teacher: jax.Array
    advantage: jax.Array
    target: jax.Array
    error: jax.Array
    alive: jax.Array
    decides: jax.Array


class PolicyLoss(NamedTuple):
    """Sums over the steps of a minibatch that decide; [] float32 each.

    Attributes:
      surrogate: the clipped surrogate objective, negated.
      entropy: of the policy.
      imitation: minus the log-probability of the teacher's action.
      kl: estimated divergence from the policy that acted (Schulman's k3).
      clipped: steps whose ratio was clipped.
      steps: their number.
    """

    surrogate: jax.Array
    entropy: jax.Array
    imitation: jax.Array
    kl: jax.Array
    clipped: jax.Array
    steps: jax.Array


def policy_loss(policy: distrax.Categorical, batch: Batch, clip: float) -> PolicyLoss:
    """The parts of PPO's policy loss; a step with nothing to decide has no share in them."""
    log_ratio = jnp.where(batch.decides > 0, policy.log_prob(batch.action) - batch.log_prob, 0)
    ratio = jnp.exp(log_ratio)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    surrogate = -jnp.minimum(ratio * batch.advantage, bounded * batch.advantage)
    # A masked action of the teacher's (holding where that is no choice) teaches nothing.
    taught = jnp.take_along_axis(policy.logits > MASKED, batch.teacher[..., None], axis=-1)[..., 0]
    imitation = jnp.where(taught, -policy.log_prob(batch.teacher), 0)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(batch.decides * values)

    return PolicyLoss(
        surrogate=total(surrogate),
        entropy=total(policy.entropy()),
        imitation=total(imitation),
        kl=total(ratio - 1 - log_ratio),
        clipped=total((jnp.abs(ratio - 1) > clip).astype(jnp.float32)),
        steps=jnp.sum(batch.decides),
    )


def critic_loss(value: jax.Array, batch: Batch) -> jax.Array:
    """Sum over the steps of a minibatch of half the squared error of the value; [] float32."""
    return 0.5 * jnp.sum(batch.alive * (value - batch.target) ** 2)
