"""The stage that learns through the relaxed fleet: all seeds side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.devices import lane_sharding, placed
from jaxroute.policies.network import FeatureScales
from jaxroute.train.config import TrainConfig
from jaxroute.train.decode import deterministic
from jaxroute.train.gradient import (
    GradientState,
    initial_state,
    make_learner,
    run_updates,
    state_specs,
    steps_of_an_update,
)
from jaxroute.train.health import check_finite
from jaxroute.train.normalise import Moments, RunningScales
from jaxroute.train.scenarios import Group
from jaxroute.train.stage import Candidate, call_length

CALL_STEPS = 32_768
"""Router intervals of all runs together that one call simulates: some seconds' worth."""

KNOWN = 1e5
"""Intervals that the scales of a policy from the stage before stand for."""


class GradientStage:
    """See `Stage`; the state is a GradientState with [K] leaves, K = `seeds`."""

    name = "gradient"

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

    def initial(self, before: Candidate | None) -> GradientState:
        """See `Stage.initial`; every seed goes on from the same policy, if there is one."""
        seeds = np.arange(self._config.seed, self._config.seed + self._config.seeds, dtype=np.int32)
        keys = jax.vmap(jax.random.key)(seeds)
        states = jax.vmap(lambda key: initial_state(self._learner, self._params, key))(keys)
        if before is None:
            return states

        def repeated(leaf: Any) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(leaf), (len(seeds), *np.shape(leaf)))

        known = jax.tree.map(repeated, (before.policy, _running(before.scales)))
        return states.replace(policy=known[0], scales=known[1])

    def like(self) -> GradientState:
        """See `Stage.like`."""
        return jax.eval_shape(lambda: self.initial(None))

    def placed(self, state: GradientState) -> GradientState:
        """See `Stage.placed`."""
        shardings = jax.tree.map(
            lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
            state_specs(state),
            is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
        )
        return placed(state, shardings)

    def advance(self, state: GradientState, count: int) -> tuple[GradientState, Any]:
        """See `Stage.advance`; the state that is handed in is used up."""
        state, metrics = run_updates(self._learner, self._spread, state, mesh=self._mesh, count=count)
        return state, jax.device_get(metrics)

    def check(self, state: GradientState, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`; a collapse is seen in `busiest` and in the validations."""
        check_finite(self.name, done, metrics, jax.device_get((state.policy, state.critic)))
        return collapsed

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`; nothing runs beside it that it could be compared with."""
        del metrics
        return 0.0

    def candidates(self, state: GradientState) -> list[Candidate]:
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


def _running(scales: FeatureScales) -> RunningScales:
    """Running scales that have arrived at the given ones."""

    def moments(mean: Any, std: Any) -> Moments:
        return Moments(count=jnp.float32(KNOWN), mean=jnp.asarray(mean), square=jnp.asarray(std) ** 2)

    return RunningScales(
        router=moments(scales.global_mean, scales.global_std),
        instances=moments(scales.instance_mean, scales.instance_std),
    )
