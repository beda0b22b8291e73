"""Optax under the strict dtypes that everything else here is held to."""

from __future__ import annotations

import jax
import optax


def lenient(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser, whose own arithmetic may mix integers and floats: Optax raises a float to a step count."""

    def update(
        gradient: optax.Updates, state: optax.OptState, weights: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            step, after = optimiser.update(gradient, state, weights)
        return step, after

    return optax.GradientTransformation(optimiser.init, update)
