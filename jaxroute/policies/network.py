"""The learned policy's network: one scorer for every instance, and a logit to hold; Flax linen.

Axis letters: I instances, F features of an instance, G features of the router. No instance index goes in, so a network
serves fleets of any size, and permuted instances get permuted logits.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.observation import Observed


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
    router's features. The hold logit comes from the fleet's mean, least and most, and the router's features. Both have
    a linear path around the hidden layers, on the features as they are: a heuristic's score fits in there, and is
    where training can start (see `linear_prior`).

    Attributes:
      hidden: sizes of the hidden layers.
      holds: whether holding is an action that may be chosen while a request can be sent.
    """

    hidden: tuple[int, ...] = (32, 32)
    holds: bool = True

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
        hold = self._layers(whole, "hold") + around
        logits = jnp.concatenate([scores[..., 0], hold], axis=-1)
        return jnp.where(self._allowed(observed.mask), logits, jnp.finfo(jnp.float32).min)

    def _layers(self, inputs: jax.Array, name: str) -> jax.Array:
        for number, size in enumerate(self.hidden):
            inputs = nn.tanh(nn.Dense(size, name=f"{name}_{number}")(inputs))
        return nn.Dense(1, kernel_init=nn.initializers.orthogonal(0.01), name=f"{name}_out")(inputs)

    def _allowed(self, mask: jax.Array) -> jax.Array:
        """The mask, without hold where it is no choice."""
        if self.holds:
            return mask
        sends = jnp.any(mask[..., :-1], axis=-1)
        return mask.at[..., -1].set(mask[..., -1] & ~sends)
