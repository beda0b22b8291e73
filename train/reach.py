"""Which weights evolution changes, and in what units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxroute.policies.network import FeatureScales
from jaxroute.train.state import Params

WHOLE, LINEAR = "whole", "linear"

LEAST_STD = 0.05
"""Standard deviation below which a feature counts as having this one: it hardly moves, and should not be let loose."""


def reach_of(policy: Params, scales: FeatureScales, path: str) -> jax.Array:
    """[D] float32, how far one unit of noise moves each weight.

    Args:
      policy: the scorer's weights, D in all.
      scales: of its features.
      path: `whole`, every weight by 1; or `linear`, those of the linear paths alone, so that each feature, moved by its
        standard deviation, changes the logit as the feature that leads at the start does. Some fifty weights need far
        fewer members than thousands do.
    """
    if path == WHOLE:
        return jnp.ones_like(ravel_pytree(policy)[0])
    reach = jax.tree.map(jnp.zeros_like, policy)
    weights = reach["params"]
    linear = policy["params"]
    instance = jnp.maximum(scales.instance_std, LEAST_STD)
    both = jnp.concatenate([instance, jnp.maximum(scales.global_std, LEAST_STD)])
    weights["score_linear"] = {"kernel": _even(linear["score_linear"]["kernel"], instance)}
    hold = linear["hold_linear"]["kernel"]
    weights["hold_linear"] = {"kernel": _even(hold, both), "bias": jnp.full(1, _lead(hold, both))}
    return ravel_pytree(reach)[0]


def _lead(kernel: jax.Array, std: jax.Array) -> jax.Array:
    """[] float32, the largest effect of a feature on the logit; 1 if none has any."""
    most = jnp.max(jnp.abs(kernel[:, 0]) * std)
    return jnp.where(most > 0, most, 1)


def _even(kernel: jax.Array, std: jax.Array) -> jax.Array:
    """As the kernel: what gives each feature the same effect."""
    return (_lead(kernel, std) / std)[:, None]
