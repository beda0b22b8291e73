"""From a policy that draws its actions to one that always takes the likeliest."""

from __future__ import annotations

import math

from jaxroute.train.state import Params

SHORT_HOLD_S = 0.5
"""A hold that would last no longer on average is none."""

SOFTER = 0.1
"""What hold logits are multiplied by: it changes no greedy decision, and lets small changes of weights change some."""


def deterministic(policy: Params, dt: float) -> Params:
    """The weights with which the highest logit decides as the drawn actions do on the whole.

    A policy that holds with probability q in every interval holds for dt / (1 - q) on average, a few hundredths of a
    second even where holding is the likeliest action; taking the likeliest would hold for ever. So the hold logit,
    which counts from the best instance's, is lowered to where it wins only if the drawn holds last longer than
    `SHORT_HOLD_S`.
    """
    weights = dict(policy["params"])
    linear, out = weights["hold_linear"], weights["hold_out"]
    shift = math.log(max(SHORT_HOLD_S / dt - 1, 1.0))
    weights["hold_linear"] = {"kernel": SOFTER * linear["kernel"], "bias": SOFTER * (linear["bias"] - shift)}
    weights["hold_out"] = {name: SOFTER * values for name, values in out.items()}
    return {**policy, "params": weights}
