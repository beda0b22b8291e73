"""A policy that draws its actions, made into one that takes the likeliest."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NETWORK, SCALES, first_weights

from jaxroute.observation import GLOBAL_FEATURES, INSTANCE_FEATURES, Observed
from jaxroute.train.decode import SHORT_HOLD_S, deterministic
from jaxroute.train.rollout import action_logits

DT = 0.02
BORDER = math.log(SHORT_HOLD_S / DT - 1)
"""Logit from which on drawn holds last longer than `SHORT_HOLD_S` on average."""


def observed(seed: int, *, sends: tuple[bool, bool] = (True, True)) -> Observed:
    rng = np.random.default_rng(seed)
    return Observed(
        router=jnp.asarray(rng.normal(size=len(GLOBAL_FEATURES)), jnp.float32),
        instances=jnp.asarray(rng.uniform(0.1, 2, size=(2, len(INSTANCE_FEATURES))), jnp.float32),
        mask=jnp.asarray([*sends, True]),
    )


def holding(logit: float, seed: int = 0) -> Any:
    """Weights whose hold logit is about so far above the best instance's."""
    weights = first_weights(seed)
    weights["params"]["hold_linear"]["bias"] = jnp.full(1, logit)
    return weights


def margin(weights: Any, seen: Observed) -> float:
    """The hold logit above the best instance's."""
    logits = np.asarray(action_logits(NETWORK, weights, seen, SCALES))
    return float(logits[-1] - logits[:-1].max())


def test_the_border_is_where_drawn_holds_last_as_long_as_is_short() -> None:
    holds = 1 / (1 + math.exp(-BORDER))
    assert DT / (1 - holds) == pytest.approx(SHORT_HOLD_S)


@pytest.mark.parametrize(("above", "takes_hold"), [(-6.0, False), (-0.5, False), (0.5, True), (3.0, True)])
def test_it_holds_where_drawn_holds_last_long(above: float, takes_hold: bool) -> None:
    for seed in range(5):
        seen = observed(seed)
        drawn = holding(BORDER + above, seed)
        # Drawn, holding is likely in all but the first case: taking the likeliest as it is would hold for ever.
        assert (margin(drawn, seen) > 0) == (above > -BORDER)
        assert (margin(deterministic(drawn, DT), seen) > 0) == takes_hold


def test_which_instance_is_best_does_not_change() -> None:
    for seed in range(5):
        seen, drawn = observed(seed), holding(1.0, seed)
        before = action_logits(NETWORK, drawn, seen, SCALES)
        after = action_logits(NETWORK, deterministic(drawn, DT), seen, SCALES)
        np.testing.assert_allclose(after[:2], before[:2], rtol=1e-6)


def test_the_order_of_holds_between_states_does_not_change() -> None:
    drawn = holding(1.0)
    states = [observed(seed) for seed in range(10)]
    before, after = ([margin(each, seen) for seen in states] for each in (drawn, deterministic(drawn, DT)))
    assert np.argsort(before).tolist() == np.argsort(after).tolist()
    assert np.std(before) > 0


def test_with_nothing_to_send_it_holds_and_the_weights_given_stay_as_they_were() -> None:
    drawn = holding(-9.0)
    copy = jax.tree.map(np.array, drawn)
    after = deterministic(drawn, DT)
    assert int(jnp.argmax(action_logits(NETWORK, after, observed(0, sends=(False, False)), SCALES))) == 2
    for one, other in zip(jax.tree.leaves(drawn), jax.tree.leaves(copy), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_slow_router_needs_no_lowering() -> None:
    seen = observed(0)
    drawn = holding(0.3)
    assert margin(deterministic(drawn, 1.0), seen) > 0
