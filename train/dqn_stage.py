"""The paper's algorithm as a stage of its own: all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax

from jaxroute.train.dqn import initial_state, make_learner, run_updates, state_specs, steps_of_an_update
from jaxroute.train.dqn_state import DqnState
from jaxroute.train.health import check_finite
from jaxroute.train.side_by_side import Algorithm, SideBySide
from jaxroute.train.state import Params

CALL_STEPS = 65_536
"""Router intervals of all runs together that one call simulates: some seconds' worth."""


class DqnStage(SideBySide):
    """See `Stage`; the state is a DqnState with [K] leaves."""

    name = "dqn"
    algorithm = Algorithm(make_learner, steps_of_an_update, initial_state, run_updates, state_specs)

    def call_steps(self) -> int:
        """See `SideBySide.call_steps`."""
        return CALL_STEPS

    def check(self, state: DqnState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`; a collapse is seen in `busiest` and in the validations."""
        check_finite(self.name, done, metrics, jax.device_get(state.policy))
        return collapsed

    def decided(self, policy: Params) -> Params:
        """The policy's own: the highest Q value is the highest logit."""
        return policy
