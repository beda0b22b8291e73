"""The first stage: PPO of all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxroute.devices import lane_sharding, placed
from jaxroute.train.config import TrainConfig
from jaxroute.train.decode import deterministic
from jaxroute.train.health import check_collapse, check_finite, collapsed_for
from jaxroute.train.ppo import initial_state, run_updates, state_specs
from jaxroute.train.scenarios import Group
from jaxroute.train.stage import Candidate, call_length
from jaxroute.train.state import TrainState
from jaxroute.train.update import Learner

CALL_STEPS_ON_CPU, CALL_STEPS_ELSEWHERE = 65_536, 4_194_304
"""Router intervals of all runs together that one call simulates: a few seconds' worth."""


class PpoStage:
    """See `Stage`; the state is a TrainState with [K] leaves, K = `seeds`."""

    name = "ppo"

    def __init__(
        self, config: TrainConfig, learner: Learner, groups: tuple[Group, ...], mesh: jax.sharding.Mesh
    ) -> None:
        """The static parts of the stage; every seed plays the same groups."""
        self._config = config
        self._learner = learner
        self._mesh = mesh
        self._params = tuple(group.params for group in groups)
        self._spread = placed(self._params, lane_sharding(mesh))
        self._per_update = config.steps_of_an_update
        steps = CALL_STEPS_ON_CPU if jax.default_backend() == "cpu" else CALL_STEPS_ELSEWHERE
        self.total = learner.updates
        self.per_call = call_length(self.total, steps // (self._per_update * config.seeds))

    def initial(self, before: Candidate | None) -> TrainState:
        """See `Stage.initial`; there is no stage before."""
        del before
        seeds = np.arange(self._config.seed, self._config.seed + self._config.seeds, dtype=np.int32)
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.vmap(lambda key: initial_state(self._learner, self._params, key))(keys)

    def like(self) -> TrainState:
        """See `Stage.like`."""
        return jax.eval_shape(lambda: self.initial(None))

    def placed(self, state: TrainState) -> TrainState:
        """See `Stage.placed`."""
        shardings = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
            state_specs(state),
            is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
        )
        return placed(state, shardings)

    def advance(self, state: TrainState, count: int) -> tuple[TrainState, Any]:
        """See `Stage.advance`; the state that is handed in is used up."""
        state, metrics = run_updates(self._learner, self._spread, state, mesh=self._mesh, count=count)
        return state, jax.device_get(metrics)

    def check(self, state: TrainState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`."""
        check_finite(self.name, done, metrics, jax.device_get((state.policy, state.critic)))
        counts = collapsed_for(self._config, np.asarray(collapsed), metrics)
        check_collapse(counts, self._config.seed, done)
        return [int(count) for count in counts]

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`: against the twin, mean over the seeds."""
        return float(np.mean(metrics.gain[-1]))

    def candidates(self, state: TrainState) -> list[Candidate]:
        """See `Stage.candidates`."""
        policies, scales = jax.device_get((state.policy, jax.vmap(lambda each: each.fixed())(state.scales)))
        found = []
        for number in range(self._config.seeds):
            policy, own = jax.tree.map(lambda leaf, number=number: leaf[number], (policies, scales))
            seed = self._config.seed + number
            found.append(Candidate(deterministic(policy, self._config.fleets[0].turn_s), own, seed))
        return found

    def env_steps(self, done: int) -> int:
        """See `Stage.env_steps`."""
        return done * self._per_update
