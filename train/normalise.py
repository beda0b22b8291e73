"""Running means and spreads of the policy's features, kept on the device and summed over it and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.observation import Observed
from jaxroute.policies.network import FeatureScales

LEAST_STD = 1e-3
"""A feature that hardly changes is not blown up."""


class Moments(struct.PyTreeNode):
    """Weighted sums of a set of features.

    Attributes:
      count: [] float32, sum of weights.
      mean: [F] float32.
      square: [F] float32, mean of squares about the mean.
    """

    count: jax.Array
    mean: jax.Array
    square: jax.Array

    @classmethod
    def nothing(cls, features: int) -> Moments:
        """Of no values."""
        return cls(count=jnp.float32(0), mean=jnp.zeros(features), square=jnp.zeros(features))

    def merged(self, other: Moments) -> Moments:
        """Of the values of both (Chan et al., 1979)."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + share * delta,
            square=self.square * (1 - share) + other.square * share + delta**2 * share * (1 - share),
        )

    @property
    def std(self) -> jax.Array:
        """[F] float32; 1 before there was any value."""
        return jnp.where(self.count > 0, jnp.maximum(jnp.sqrt(self.square), LEAST_STD), 1)


class RunningScales(struct.PyTreeNode):
    """Attributes: router: moments of the G features of the router; instances: of the F features of an instance."""

    router: Moments
    instances: Moments

    @classmethod
    def nothing(cls, router_features: int, instance_features: int) -> RunningScales:
        """Before the first rollout."""
        return cls(router=Moments.nothing(router_features), instances=Moments.nothing(instance_features))

    def updated(self, observed: Sequence[Observed], weights: Sequence[jax.Array], axis: str | None) -> RunningScales:
        """With the observations of one rollout.

        Args:
          observed: of each group, leading axes [...].
          weights: [...] float32 of each group, 0 for steps that do not count.
          axis: mesh axis over which lanes are spread, or None.
        """
        for each, weight in zip(observed, weights, strict=True):
            rows = jnp.broadcast_to(weight[..., None], each.instances.shape[:-1])
            self = RunningScales(
                router=self.router.merged(_moments(each.router, weight, axis)),
                instances=self.instances.merged(_moments(each.instances, rows, axis)),
            )
        return self

    def fixed(self) -> FeatureScales:
        """What the network normalises by."""
        return FeatureScales(
            global_mean=self.router.mean,
            global_std=self.router.std,
            instance_mean=self.instances.mean,
            instance_std=self.instances.std,
        )


def _moments(values: jax.Array, weight: jax.Array, axis: str | None) -> Moments:
    over = tuple(range(weight.ndim))
    count = _total(jnp.sum(weight), axis)
    mean = _total(jnp.sum(values * weight[..., None], axis=over), axis) / jnp.maximum(count, 1)
    deviation = values - jnp.expand_dims(mean, over)
    square = _total(jnp.sum(deviation**2 * weight[..., None], axis=over), axis) / jnp.maximum(count, 1)
    return Moments(count=count, mean=mean, square=square)


def _total(value: jax.Array, axis: str | None) -> jax.Array:
    return value if axis is None else jax.lax.psum(value, axis)
