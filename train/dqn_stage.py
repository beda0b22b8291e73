"""The paper's algorithm as a stage of its own: all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxroute.devices import lane_sharding, placed
from jaxroute.train.config import TrainConfig
from jaxroute.train.dqn import DqnState, initial_state, make_learner, run_updates, state_specs, steps_of_an_update
from jaxroute.train.health import check_finite
from jaxroute.train.scenarios import Group
from jaxroute.train.stage import Candidate, call_length

CALL_STEPS = 65_536
"""Router intervals of all runs together that one call simulates: some seconds' worth."""


class DqnStage:
    """See `Stage`; the state is a DqnState with [K] leaves, K = `seeds`."""

    name = "dqn"

    def __init__(self, config: TrainConfig, groups: tuple[Group, ...], mesh: jax.sharding.Mesh) -> None:
        """The static parts of the stage; every seed plays the same groups."""
        self._config = config
        self._learner = make_learner(config, tuple(group.env for group in groups))
        self._mesh = mesh
        self._params = tuple(group.params for group in groups)
        self._spread = placed(self._params, lane_sharding(mesh))
        self._per_update = steps_of_an_update(config)
        self.total = self._learner.updates
        self.per_call = call_length(self.total, CALL_STEPS // (self._per_update * config.seeds))

    def initial(self, before: Candidate | None) -> DqnState:
        """See `Stage.initial`; there is no stage before."""
        del before
        seeds = np.arange(self._config.seed, self._config.seed + self._config.seeds, dtype=np.int32)
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.vmap(lambda key: initial_state(self._learner, self._params, key))(keys)

    def like(self) -> DqnState:
        """See `Stage.like`."""
        return jax.eval_shape(lambda: self.initial(None))

    def placed(self, state: DqnState) -> DqnState:
        """See `Stage.placed`."""
        shardings = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
            state_specs(state),
            is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
        )
        return placed(state, shardings)

    def advance(self, state: DqnState, count: int) -> tuple[DqnState, Any]:
        """See `Stage.advance`; the state that is handed in is used up."""
        state, metrics = run_updates(self._learner, self._spread, state, mesh=self._mesh, count=count)
        return state, jax.device_get(metrics)

    def check(self, state: DqnState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`; a collapse is seen in `busiest` and in the validations."""
        check_finite(self.name, done, metrics, jax.device_get(state.policy))
        return collapsed

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`; nothing runs beside it that it could be compared with."""
        del metrics
        return 0.0

    def candidates(self, state: DqnState) -> list[Candidate]:
        """See `Stage.candidates`: the highest Q value is the highest logit."""
        policies, scales = jax.device_get((state.policy, jax.vmap(lambda each: each.fixed())(state.scales)))
        found = []
        for number in range(self._config.seeds):
            policy, own = jax.tree.map(lambda leaf, number=number: leaf[number], (policies, scales))
            found.append(Candidate(policy, own, self._config.seed + number))
        return found

    def env_steps(self, done: int) -> int:
        """See `Stage.env_steps`."""
        return done * self._per_update
