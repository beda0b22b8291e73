"""One-hot choices with soft derivatives."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.relaxed.straight_through import ESTIMATORS

LOGITS = jnp.asarray([0.3, -0.5, jnp.finfo(jnp.float32).min, 1.0])
COSTS = jnp.asarray([1.0, 3.0, 100.0, -2.0])
Choice = Callable[[jax.Array, jax.Array, float], tuple[jax.Array, jax.Array]]


@pytest.mark.parametrize("choice", ESTIMATORS.values(), ids=ESTIMATORS)
def test_draws_have_the_probabilities_of_the_logits_at_any_temperature(choice: Choice) -> None:
    keys = jax.random.split(jax.random.key(0), 20_000)
    weights, drawn = jax.jit(jax.vmap(lambda key: choice(key, LOGITS, 0.3)))(keys)
    np.testing.assert_allclose(np.asarray(weights).mean(axis=0), jax.nn.softmax(LOGITS), atol=0.012)
    assert set(np.unique(weights)) == {0, 1}
    assert (np.asarray(weights).sum(axis=1) == 1).all()
    assert (np.asarray(weights).argmax(axis=1) == np.asarray(drawn)).all()


def test_the_expected_choice_has_the_derivative_of_the_expected_cost() -> None:
    def cost(logits: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sum(COSTS * ESTIMATORS["expected"](key, logits, 1.0)[0])

    exact = jax.grad(lambda logits: jnp.sum(COSTS * jax.nn.softmax(logits)))(LOGITS)
    np.testing.assert_allclose(jax.grad(cost)(LOGITS, jax.random.key(3)), exact, atol=1e-6)


def test_the_gumbel_choice_has_it_nearly_on_average() -> None:
    def cost(logits: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sum(COSTS * ESTIMATORS["gumbel"](key, logits, 0.5)[0])

    keys = jax.random.split(jax.random.key(1), 4000)
    own = np.asarray(jax.jit(jax.vmap(jax.grad(cost), in_axes=(None, 0)))(LOGITS, keys)).mean(axis=0)
    exact = np.asarray(jax.grad(lambda logits: jnp.sum(COSTS * jax.nn.softmax(logits)))(LOGITS))
    assert own[2] == 0
    assert np.corrcoef(own, exact)[0, 1] > 0.98
