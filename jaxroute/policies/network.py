"""The learned policy's network: one scorer for every instance, and a logit to hold; Flax linen.

Axis letters: I instances, F features of an instance, G features of the router. No instance index goes in, so a network
serves fleets of any size, and permuted instances get permuted logits. The paper's network, `StateScorer`, is the other
kind.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.observation import Observed
from jaxroute.policies.policy_file import SCORER, STATE


class FeatureScales(struct.PyTreeNode):
    """What the features are normalised by, (value - mean) / std.

    Attributes:
      global_mean, global_std: [G] float32.
      instance_mean, instance_std: [F] float32, the same for every instance.
    """

    global_mean: jax.Array
    global_std: jax.Array
    instance_mean: jax.Array
    instance_std: jax.Array

    @classmethod
    def identity(cls, global_features: int, instance_features: int) -> FeatureScales:
        """Scales that change nothing."""
        return cls(
            global_mean=jnp.zeros(global_features),
            global_std=jnp.ones(global_features),
            instance_mean=jnp.zeros(instance_features),
            instance_std=jnp.ones(instance_features),
        )

    def apply(self, observed: Observed) -> tuple[jax.Array, jax.Array]:
        """Normalised router features [..., G] and instance features [..., I, F]."""
        return (
            _normalised(observed.router, self.global_mean, self.global_std),
            _normalised(observed.instances, self.instance_mean, self.instance_std),
        )


def _normalised(values: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    leading = range(values.ndim - 1)
    return (values - jnp.expand_dims(mean, leading)) / jnp.expand_dims(std, leading)


class Scorer(nn.Module):
    """Logits of the actions from what is observed.

    Instance i is scored from its own features, their differences to the fleet's mean and to the fleet's least, and the
    router's features. The hold logit comes from the fleet's mean, least and most, and the router's features, and counts
    from the best score of an instance that can take the head: whether to send and where are apart. Both have a linear
    path around the hidden layers, on the features as they are: a heuristic's score fits in there, and is where
    training can start.

    Attributes:
      hidden: sizes of the hidden layers.
      holds: whether holding is an action that may be chosen while a request can be sent.
      count_columns: leading instance features that are all 0 where, and only where, nothing is in flight (see
        `observation.count_columns`).
    """

    hidden: tuple[int, ...] = (32, 32)
    holds: bool = True
    count_columns: int = 1

    @nn.compact
    def __call__(self, observed: Observed, scales: FeatureScales) -> jax.Array:
        """[..., I + 1] float32 logits; those of masked actions are the least finite float32."""
        router, rows = scales.apply(observed)
        mean, least, most = jnp.mean(rows, axis=-2), jnp.min(rows, axis=-2), jnp.max(rows, axis=-2)
        spread = jnp.broadcast_to(router[..., None, :], (*rows.shape[:-1], router.shape[-1]))
        each = jnp.concatenate([rows, rows - mean[..., None, :], rows - least[..., None, :], spread], axis=-1)
        scores = self._layers(each, "score") + nn.Dense(1, use_bias=False, name="score_linear")(observed.instances)
        whole = jnp.concatenate([mean, least, most, router], axis=-1)
        emptiest = jnp.min(observed.instances, axis=-2)
        around = nn.Dense(1, name="hold_linear")(jnp.concatenate([emptiest, observed.router], axis=-1))
        hold = self._layers(whole, "hold") + around + _best(scores[..., 0], observed.mask[..., :-1])[..., None]
        logits = jnp.concatenate([scores[..., 0], hold], axis=-1)
        return jnp.where(self.allowed(observed), logits, jnp.finfo(jnp.float32).min)

    def _layers(self, inputs: jax.Array, name: str) -> jax.Array:
        for number, size in enumerate(self.hidden):
            inputs = nn.tanh(nn.Dense(size, name=f"{name}_{number}")(inputs))
        return nn.Dense(1, kernel_init=nn.initializers.orthogonal(0.01), name=f"{name}_out")(inputs)

    def allowed(self, observed: Observed) -> jax.Array:
        """[..., I + 1] bool, the actions that the policy chooses from.

        While a request can be sent, holding is none of them where `holds` is False, nor where an instance that can take
        the request is idle: nothing is to be waited for, and a policy that always sends then cannot stall.
        """
        sends = observed.mask[..., :-1]
        waits_for_nothing = sends & is_idle(observed, self.count_columns)
        no_hold = jnp.any(waits_for_nothing if self.holds else sends, axis=-1)
        return observed.mask.at[..., -1].set(observed.mask[..., -1] & ~no_hold)


class StateScorer(Scorer):
    """Logits from the whole state at once: the network of Jain et al. (appendix A.9.3), an MLP with ReLU.

    The rows of all instances go in side by side, so it serves fleets of one size only, and tells instances apart by
    their place. Which actions are allowed is as in `Scorer`, of which it has the attributes.
    """

    @nn.compact
    def __call__(self, observed: Observed, scales: FeatureScales) -> jax.Array:
        """[..., I + 1] float32 logits; those of masked actions are the least finite float32."""
        router, rows = scales.apply(observed)
        values = jnp.concatenate([router, rows.reshape(*rows.shape[:-2], -1)], axis=-1)
        for number, size in enumerate(self.hidden):
            values = nn.relu(nn.Dense(size, name=f"state_{number}")(values))
        logits = nn.Dense(rows.shape[-2] + 1, name="state_out")(values)
        return jnp.where(self.allowed(observed), logits, jnp.finfo(jnp.float32).min)


SCORERS: Mapping[str, type[Scorer]] = {SCORER: Scorer, STATE: StateScorer}
"""By their form in a policy file."""


def is_idle(observed: Observed, count_columns: int) -> jax.Array:
    """[..., I] bool, instances with nothing in flight: all of their leading count columns are 0."""
    return jnp.all(observed.instances[..., :count_columns] == 0, axis=-1)


def _best(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """[...] float32, the highest score of an allowed instance; 0 where there is none."""
    lowest = jnp.finfo(jnp.float32).min
    best = jnp.max(jnp.where(allowed, scores, lowest), axis=-1)
    return jnp.where(jnp.any(allowed, axis=-1), best, 0)
