"""The stage that learns through the relaxed fleet: all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.policies.network import FeatureScales
from jaxroute.train.gradient import initial_state, make_learner, run_updates, state_specs, steps_of_an_update
from jaxroute.train.gradient_state import GradientState
from jaxroute.train.health import check_finite
from jaxroute.train.normalise import Moments, RunningScales
from jaxroute.train.side_by_side import Algorithm, SideBySide
from jaxroute.train.stage import Candidate

CALL_STEPS = 32_768
"""Router intervals of all runs together that one call simulates: some seconds' worth."""

KNOWN = 1e5
"""Intervals that the scales of a policy from the stage before stand for."""


class GradientStage(SideBySide):
    """See `Stage`; the state is a GradientState with [K] leaves."""

    name = "gradient"
    algorithm = Algorithm(make_learner, steps_of_an_update, initial_state, run_updates, state_specs)

    def call_steps(self) -> int:
        """See `SideBySide.call_steps`."""
        return CALL_STEPS

    def initial(self, before: Candidate | None) -> GradientState:
        """See `Stage.initial`; every seed goes on from the same policy, if there is one."""
        states: GradientState = super().initial(None)
        if before is None:
            return states

        def repeated(leaf: Any) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(leaf), (self._config.seeds, *np.shape(leaf)))

        known = jax.tree.map(repeated, (before.policy, _running(before.scales)))
        return states.replace(policy=known[0], scales=known[1])

    def check(self, state: GradientState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`; a collapse is seen in `busiest` and in the validations."""
        check_finite(self.name, done, metrics, jax.device_get((state.policy, state.critic)))
        return collapsed


def _running(scales: FeatureScales) -> RunningScales:
    """Running scales that have arrived at the given ones."""

    def moments(mean: Any, std: Any) -> Moments:
        return Moments(count=jnp.float32(KNOWN), mean=jnp.asarray(mean), square=jnp.asarray(std) ** 2)

    return RunningScales(
        router=moments(scales.global_mean, scales.global_std),
        instances=moments(scales.instance_mean, scales.instance_std),
    )
