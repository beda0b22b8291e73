"""Where a policy starts: a heuristic's score in the network's linear path."""

from __future__ import annotations

import copy

import jax.numpy as jnp

from jaxroute.errors import InputError
from jaxroute.observation import FULL_CACHE, INSTANCE_FEATURES
from jaxroute.policies.policy_file import STATE
from jaxroute.train.config import NetworkConfig
from jaxroute.train.state import Params

FILL = "tokens in flight with the head's prompt / KV tokens"
ADDED = "log of 1 + seconds that the head adds to all latencies"
CROWDING = "crowding with the head"
OVERFULL = "share of the KV cache filled with the head's prompt beyond 90 %"

PRIORS = {
    "none": (None, None),
    "least-tokens": (FILL, None),
    "gate": (FILL, FILL),
    "marginal": (ADDED, None),
    "marginal-gate": (ADDED, CROWDING),
}
"""By name: the feature of which an instance should have the least, and the one that makes the router hold while every
instance has more than `GATE` of it. Without the first all instances are alike, without the second it hardly ever holds;
with both, an instance whose cache is full is shunned as well.
"""

GATE = FULL_CACHE
"""Share of the KV cache, or crowding, that a gate allows."""

GATE_SHARPNESS = 200.0
"""Logits by which holding gains for a whole cache: drawn in every interval, a soft gate would never hold for long."""

RARELY = -4.0
"""Hold logit, counted from the best instance's, of a policy that hardly ever holds at first."""


def with_prior(policy: Params, network: NetworkConfig) -> Params:
    """A network's weights with its linear path set to the prior; one over the whole state has none and stays as it is.

    Raises:
      InputError: an unknown prior, or one that needs the rich observation.
    """
    if network.prior not in PRIORS:
        raise InputError(f"network.prior is {network.prior!r}; known: {', '.join(PRIORS)}")
    if network.form == STATE:
        return policy
    policy = copy.deepcopy(policy)
    weights = policy["params"]
    score = jnp.zeros_like(weights["score_linear"]["kernel"])
    hold = jnp.zeros_like(weights["hold_linear"]["kernel"])
    bias = jnp.full_like(weights["hold_linear"]["bias"], RARELY)
    least, gate = PRIORS[network.prior]
    if network.prior != "none" and network.observation != "rich":
        raise InputError(f"network.prior {network.prior} needs network.observation = 'rich'; set it to 'none'")
    if least is not None:
        score = score.at[INSTANCE_FEATURES.index(least), 0].set(-network.prior_weight)
    if gate is not None:
        score = score.at[INSTANCE_FEATURES.index(OVERFULL), 0].set(-GATE_SHARPNESS)
        hold = hold.at[INSTANCE_FEATURES.index(gate), 0].set(GATE_SHARPNESS)
        bias = jnp.full_like(bias, -GATE_SHARPNESS * GATE)
    weights["score_linear"]["kernel"] = score
    weights["hold_linear"] = {"kernel": hold, "bias": bias}
    return policy
