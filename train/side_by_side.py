"""What the stages have in common that train K = `seeds` runs side by side, every one on the same groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxroute.devices import lane_sharding, placed
from jaxroute.env import ClusterRouting
from jaxroute.train.config import TrainConfig
from jaxroute.train.decode import deterministic
from jaxroute.train.scenarios import Group
from jaxroute.train.stage import Candidate, State, call_length
from jaxroute.train.state import Params


class Algorithm(NamedTuple):
    """The functions of an algorithm.

    Attributes:
      make_learner: (config, the groups' environments) -> the static argument of the others; it has the `updates`.
      steps_of_an_update: config -> router intervals of one run that an update simulates.
      initial_state: (learner, the groups' parameters, key) -> the state of one run.
      run_updates: (learner, the groups' parameters, state, mesh=, count=) -> (state, metrics).
      state_specs: the state -> where its leaves lie on the mesh.
    """

    make_learner: Callable[[TrainConfig, tuple[ClusterRouting, ...]], Any]
    steps_of_an_update: Callable[[TrainConfig], int]
    initial_state: Callable[..., Any]
    run_updates: Callable[..., tuple[Any, Any]]
    state_specs: Callable[[Any], Any]


class SideBySide:
    """See `Stage`, of which `name` and `check` are left open, as are two of its own; every leaf of the state is [K].

    Attributes:
      algorithm: its functions, left open, as is `call_steps`.
    """

    algorithm: Algorithm

    def __init__(
        self, config: TrainConfig, groups: tuple[Group, ...], mesh: jax.sharding.Mesh, learner: Any = None
    ) -> None:
        """The static parts of the stage.

        Args:
          config: of the run.
          groups: what is played.
          mesh: one axis, `lanes`.
          learner: of the algorithm, where there is one already.
        """
        self._config = config
        envs = tuple(group.env for group in groups)
        self._learner = self.algorithm.make_learner(config, envs) if learner is None else learner
        self._mesh = mesh
        self._params = tuple(group.params for group in groups)
        self._spread = placed(self._params, lane_sharding(mesh))
        self._per_update = self.algorithm.steps_of_an_update(config)
        self.total: int = self._learner.updates
        self.per_call = call_length(self.total, self.call_steps() // (self._per_update * config.seeds))

    def call_steps(self) -> int:
        """Router intervals of all runs together that one call simulates: some seconds' worth."""
        raise NotImplementedError

    def initial(self, before: Candidate | None) -> State:
        """See `Stage.initial`; there is no stage before."""
        del before
        seeds = np.arange(self._config.seed, self._config.seed + self._config.seeds, dtype=np.int32)
        keys = jax.vmap(jax.random.key)(seeds)
        return jax.vmap(lambda key: self.algorithm.initial_state(self._learner, self._params, key))(keys)

    def like(self) -> State:
        """See `Stage.like`."""
        return jax.eval_shape(lambda: self.initial(None))

    def placed(self, state: State) -> State:
        """See `Stage.placed`."""
        shardings = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
            self.algorithm.state_specs(state),
            is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
        )
        return placed(state, shardings)

    def advance(self, state: State, count: int) -> tuple[State, Any]:
        """See `Stage.advance`; the state that is handed in is used up."""
        state, metrics = self.algorithm.run_updates(self._learner, self._spread, state, mesh=self._mesh, count=count)
        return state, jax.device_get(metrics)

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`; nothing runs beside it that it could be compared with."""
        del metrics
        return 0.0

    def candidates(self, state: State) -> list[Candidate]:
        """See `Stage.candidates`."""
        policies, scales = jax.device_get((state.policy, jax.vmap(lambda each: each.fixed())(state.scales)))
        found = []
        for number in range(self._config.seeds):
            policy, own = jax.tree.map(lambda leaf, number=number: leaf[number], (policies, scales))
            found.append(Candidate(self.decided(policy), own, self._config.seed + number))
        return found

    def decided(self, policy: Params) -> Params:
        """The weights with which the highest logit decides as the policy does."""
        return deterministic(policy, self._config.fleets[0].turn_s)

    def env_steps(self, done: int) -> int:
        """See `Stage.env_steps`."""
        return done * self._per_update
