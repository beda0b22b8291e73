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
"""By name: all alike; the fewest tokens in flight over the KV cache, hardly ever holding; the same, holding while the
emptiest instance is filled to more than 80 % of its KV cache."""

GATE = 0.8
"""Share of the KV cache that the gate prior fills."""

RARELY = -4.0
"""Hold logit, relative to an instance's, of a policy that hardly ever holds at first."""


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
    bias = jnp.zeros_like(weights["hold_linear"]["bias"])
    if network.prior != "none":
        if network.observation != "rich":
            raise InputError(f"network.prior {network.prior} needs network.observation = 'rich'; set it to 'none'")
        # The least fill of all instances goes into the hold logit, so that it is relative to the best score.
        fill = INSTANCE_FEATURES.index(FILL)
        gate = network.prior_weight if network.prior == "gate" else 0.0
        score = score.at[fill, 0].set(-network.prior_weight)
        hold = hold.at[fill, 0].set(gate - network.prior_weight)
        bias = bias + (-gate * GATE if network.prior == "gate" else RARELY)
    weights["score_linear"]["kernel"] = score
    weights["hold_linear"] = {"kernel": hold, "bias": bias}
    return policy
