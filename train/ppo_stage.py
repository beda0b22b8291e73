"""The first stage: PPO of all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxroute.train.health import check_collapse, check_finite, collapsed_for
from jaxroute.train.ppo import initial_state, make_learner, run_updates, state_specs
from jaxroute.train.side_by_side import Algorithm, SideBySide
from jaxroute.train.state import TrainState

CALL_STEPS_ON_CPU, CALL_STEPS_ELSEWHERE = 65_536, 4_194_304
"""Router intervals of all runs together that one call simulates: a few seconds' worth."""


class PpoStage(SideBySide):
    """See `Stage`; the state is a TrainState with [K] leaves."""

    name = "ppo"
    algorithm = Algorithm(
        make_learner, lambda config: config.steps_of_an_update, initial_state, run_updates, state_specs
    )

    def call_steps(self) -> int:
        """See `SideBySide.call_steps`."""
        return CALL_STEPS_ON_CPU if jax.default_backend() == "cpu" else CALL_STEPS_ELSEWHERE

    def check(self, state: TrainState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`."""
        check_finite(self.name, done, metrics, jax.device_get((state.policy, state.critic)))
        counts = collapsed_for(self._config, np.asarray(collapsed), metrics)
        check_collapse(counts, self._config.seed, done)
        return [int(count) for count in counts]

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`: against the twin, mean over the seeds."""
        return float(np.mean(metrics.gain[-1]))
