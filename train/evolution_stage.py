"""The second stage: evolution from the best policy so far on, or from an untrained one."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.devices import lane_sharding, on_host, placed, whole_sharding
from jaxroute.env_types import EnvParams
from jaxroute.policies.network import FeatureScales
from jaxroute.train.config import TrainConfig
from jaxroute.train.evolution import (
    EvolutionState,
    initial_evolution,
    make_evolver,
    references,
    run_generations,
)
from jaxroute.train.health import check_finite
from jaxroute.train.normalise import RunningScales
from jaxroute.train.ppo import initial_state
from jaxroute.train.rollout import collect
from jaxroute.train.scenarios import Group
from jaxroute.train.stage import Candidate
from jaxroute.train.state import TrainState
from jaxroute.train.update import Learner

STREAM = 0x65766F
"""Keeps the random numbers of evolution apart from those of PPO."""


class EvolutionStage:
    """See `Stage`; the state is an EvolutionState and the seed of the run that it came from; an update a generation."""

    name = "evolution"
    per_call = 1

    def __init__(
        self,
        config: TrainConfig,
        learner: Learner,
        groups: tuple[Group, ...],
        mesh: jax.sharding.Mesh,
    ) -> None:
        """The static parts of the stage, and what the reference costs on every workload.

        Args:
          config: of the run.
          learner: of PPO, whose policies this goes on with.
          groups: what is played.
          mesh: one axis, `lanes`.
        """
        self._config = config
        self._learner = learner
        self._mesh = mesh
        self._whole = whole_sharding(mesh)
        self._params = tuple(group.params for group in groups)
        self._evolver = make_evolver(config.evolution, learner.envs, learner.network)
        spread = placed(self._params, lane_sharding(mesh))
        known = on_host(tuple(references(env, own, mesh=mesh) for env, own in zip(learner.envs, spread, strict=True)))
        self._reference = placed(known, self._whole)
        self._everywhere = placed(self._params, self._whole)
        self.total = config.evolution.generations
        self._steps_before = config.steps_of_an_update * learner.updates if config.ppo.total_steps else 0
        self._per_generation = (
            2
            * config.evolution.pairs
            * sum(
                float(np.sum(np.mean(each.makespan, axis=1))) / fleets.dt
                for each, fleets in zip(known, config.fleets, strict=True)
            )
        )

    def initial(self, before: Candidate | None) -> tuple[EvolutionState, jax.Array]:
        """See `Stage.initial`."""
        key = jax.random.fold_in(jax.random.key(self._config.seed), STREAM)
        if before is None:
            policy, scales = first_policy(self._learner, self._params, jax.random.key(self._config.seed))
            return initial_evolution(self._evolver, policy, scales, key), jnp.int32(self._config.seed)
        policy, scales = jax.tree.map(jnp.asarray, (before.policy, before.scales))
        return initial_evolution(self._evolver, policy, scales, key), jnp.int32(before.seed)

    def like(self) -> tuple[EvolutionState, jax.Array]:
        """See `Stage.like`."""
        return jax.eval_shape(lambda: self.initial(None))

    def placed(self, state: tuple[EvolutionState, jax.Array]) -> tuple[EvolutionState, jax.Array]:
        """See `Stage.placed`."""
        return placed(state, self._whole)

    def advance(self, state: tuple[EvolutionState, jax.Array], count: int) -> tuple[Any, Any]:
        """See `Stage.advance`."""
        own, seed = state
        own, progress = run_generations(
            self._evolver, self._everywhere, self._reference, own, mesh=self._mesh, count=count
        )
        # Placed anew, so that every call finds its arguments where the first did and is not compiled again.
        own = placed(own, self._whole)
        return (own, seed), jax.tree.map(lambda leaf: leaf[:, None], on_host(progress))

    def check(self, state: Any, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """See `Stage.check`; ranks of costs keep evolution from a collapse."""
        check_finite(self.name, done, metrics, jax.device_get(state[0].policy))
        return collapsed

    def gain(self, metrics: Any) -> float:
        """See `Stage.gain`: of the perturbed policies against round robin, tail and all."""
        return 1 - float(metrics.cost[-1, 0])

    def candidates(self, state: tuple[EvolutionState, jax.Array]) -> list[Candidate]:
        """See `Stage.candidates`; the policy was judged by its likeliest actions all along."""
        own, seed = state
        policy, scales = jax.device_get((own.policy, own.scales))
        return [Candidate(policy, scales, int(seed))]

    def env_steps(self, done: int) -> int:
        """See `Stage.env_steps`; as if every episode took as long as the reference's, and with the stages before."""
        return self._steps_before + round(done * self._per_generation)


def first_policy(learner: Learner, params: tuple[EnvParams, ...], key: jax.Array) -> tuple[Any, FeatureScales]:
    """An untrained policy, and the scales of the features of one rollout of it.

    Args:
      learner: static parts.
      params: of each group's environments, [E] leaves.
      key: typed key, of the run.
    """
    state = initial_state(learner, params, key)
    return state.policy, _scales(learner, params, state)


@partial(jax.jit, static_argnames=("learner",))
def _scales(learner: Learner, params: tuple[EnvParams, ...], state: TrainState) -> FeatureScales:
    observed, alive = [], []
    for env, own, lanes in zip(learner.envs, params, state.groups, strict=True):
        _, experience = collect(
            env,
            own,
            learner.network,
            state.policy,
            state.scales.fixed(),
            lanes,
            state.key,
            length=learner.config.ppo.rollout,
            teacher=learner.teacher,
            twin=None,
        )
        observed.append(experience.observed)
        alive.append(experience.alive.astype(jnp.float32))
    router, rows = observed[0].router.shape[-1], observed[0].instances.shape[-1]
    return RunningScales.nothing(router, rows).updated(observed, alive, None).fixed()
