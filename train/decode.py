"""From a policy that draws its actions to one that always takes the likeliest."""

from __future__ import annotations

import math

from jaxroute.train.state import Params

SHORT_HOLD_S = 0.5
"""A hold that would last no longer on average is none."""


def deterministic(policy: Params, dt: float) -> Params:
    """The weights with which the highest logit decides as the drawn actions do on the whole.

    A policy that holds with probability q in every interval holds for dt / (1 - q) on average, a few hundredths of a
    second even where holding is the likeliest action; taking the likeliest would hold for ever. So the hold logit is
    lowered to where it wins only if the drawn holds last longer than `SHORT_HOLD_S`.
    """
    weights = dict(policy["params"])
    linear = dict(weights["hold_linear"])
    linear["bias"] = linear["bias"] - math.log(max(SHORT_HOLD_S / dt - 1, 1.0))
    weights["hold_linear"] = linear
    return {**policy, "params": weights}
