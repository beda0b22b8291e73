"""Where a policy starts: a heuristic's score in the network's linear path."""

from __future__ import annotations

import copy

import jax.numpy as jnp

from jaxroute.errors import InputError
from jaxroute.observation import INSTANCE_FEATURES
from jaxroute.train.config import NetworkConfig
from jaxroute.train.state import Params

FILL = "tokens in flight with the head's prompt / KV tokens"

PRIORS = ("none", "least-tokens", "gate")
"""By name: all alike, hardly ever holding; the fewest tokens in flight over the KV cache, hardly ever holding; and the
same, holding while the emptiest instance is filled to more than 90 % of its KV cache."""

GATE = 0.9
"""Share of the KV cache that the gate prior fills."""

GATE_SHARPNESS = 200.0
"""Logits by which holding gains for a whole cache: drawn in every interval, a soft gate would never hold for long."""

RARELY = -4.0
"""Hold logit, counted from the best instance's, of a policy that hardly ever holds at first."""


def with_prior(policy: Params, network: NetworkConfig) -> Params:
    """A network's weights with its linear path set to the prior.

    Raises:
      InputError: an unknown prior, or one that needs the rich observation.
    """
    if network.prior not in PRIORS:
        raise InputError(f"network.prior is {network.prior!r}; known: {', '.join(PRIORS)}")
    policy = copy.deepcopy(policy)
    weights = policy["params"]
    score = jnp.zeros_like(weights["score_linear"]["kernel"])
    hold = jnp.zeros_like(weights["hold_linear"]["kernel"])
    bias = jnp.full_like(weights["hold_linear"]["bias"], RARELY)
    if network.prior != "none":
        if network.observation != "rich":
            raise InputError(f"network.prior {network.prior} needs network.observation = 'rich'; set it to 'none'")
        fill = INSTANCE_FEATURES.index(FILL)
        score = score.at[fill, 0].set(-network.prior_weight)
        if network.prior == "gate":
            hold = hold.at[fill, 0].set(GATE_SHARPNESS)
            bias = jnp.full_like(bias, -GATE_SHARPNESS * GATE)
    weights["score_linear"]["kernel"] = score
    weights["hold_linear"] = {"kernel": hold, "bias": bias}
    return policy
