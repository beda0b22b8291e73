"""`ClusterRouting-v0`: the fleet as a gymnax environment."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from gymnax.environments import spaces
from gymnax.environments.environment import Environment

from jaxroute.cluster import fleet
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.view import router_view
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.impact import mixing_penalty
from jaxroute.observation import Observed, observe, paper_observation, rich_observation
from jaxroute.reward import Reward, latency_reward, paper_reward
from jaxroute.types import ClusterParams, RouterView, Workload

OBSERVATIONS = {"rich": rich_observation, "paper": paper_observation}


@dataclasses.dataclass(frozen=True)
class ClusterRouting(Environment[Any, Any]):
    """Route the requests of a workload over a fleet of vLLM servers.

    - observation: float32 vector, `rich` or `paper` (see `observation`); its last I + 1 numbers are the action mask.
    - action: int32, instance 0..I-1 for the head of the router queue, or I = hold. A masked action holds.
    - reward: float32. `latency`: minus the seconds spent in the system by all requests in the interval; `paper`: the
      reward of Jain et al. with the mixing penalty weighted by `EnvParams.penalty_weight`; `mixing`: minus that
      penalty alone.
    - terminated: all requests have finished. truncated: the interval limit is reached, or the run is void.
    - state: `EnvState`.

    Attributes:
      config: static sizes; hashable, so that the environment is a static jit argument.
      instances: I.
      reward: which reward.
      observation: which observation.
    """

    config: ClusterConfig
    instances: int
    reward: Reward = "latency"
    observation: Literal["rich", "paper"] = "rich"

    def __post_init__(self) -> None:
        if self.reward not in get_args(Reward) or self.observation not in OBSERVATIONS:
            raise ValueError(f"unknown reward {self.reward!r} or observation {self.observation!r}")
        if self.observation == "paper" and self.config.buckets == 0:
            raise ValueError("the paper's observation needs counts by bucket: set ClusterConfig.buckets")

    @property
    def default_params(self) -> EnvParams:
        """None: `jaxroute.make` returns the parameters beside the environment."""
        raise ValueError("pass the parameters that jaxroute.make returned with this environment")

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[jax.Array, EnvState]:
        """Picks a workload of the bank and an age of the scraped signals; generates nothing."""
        key_index, key_period = jax.random.split(key)
        index = jax.random.randint(key_index, (), 0, params.workloads.num_requests.shape[0])
        least, most = params.scrape_periods[0], params.scrape_periods[1]
        period = jax.random.randint(key_period, (), least, most + 1)
        workload = _pick(params.workloads, index)
        cluster = fleet.initial_state(self.config, params.cluster, workload)
        state = EnvState(time=jnp.int32(0), index=index, scrape_period=period, cluster=cluster)
        return self.get_obs(state, params), state

    def step_env(
        self, key: jax.Array, state: EnvState, action: int | float | jax.Array, params: EnvParams
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, dict[Any, Any]]:
        """One router interval; `info` holds scalars only."""
        del key
        action = jnp.asarray(action, jnp.int32)
        before, view = state.cluster, self.view(state, params)
        allowed = (action >= 0) & (action < self.instances) & ~view.full[jnp.clip(action, 0, self.instances - 1)]
        action = jnp.where(allowed, action, self.instances)
        workload = _pick(params.workloads, state.index)
        cluster, _ = fleet.step(self.config, self._cluster(state, params), workload, before, action)
        state = state.replace(time=state.time + 1, cluster=cluster)
        if self.reward == "latency":
            reward = latency_reward(workload, before, cluster, params.cluster.dt.seconds)
        else:
            penalty = mixing_penalty(view, action, jnp)
            weight = params.penalty_weight
            if self.reward == "paper":
                reward = paper_reward(workload, before, cluster, penalty, penalty_weight=weight)
            else:
                reward = -weight * penalty
        info = {"void": fleet.is_void(cluster), "preemptions": jnp.sum(cluster.engines.preemptions, dtype=jnp.int32)}
        return self.get_obs(state, params), state, reward, self.is_terminated(state, params), info

    def view(self, state: EnvState, params: EnvParams) -> RouterView:
        """What the router can know now."""
        workload = _pick(params.workloads, state.index)
        return router_view(self.config, self._cluster(state, params), workload, state.cluster)

    def get_obs(self, state: EnvState, params: EnvParams | None = None, key: jax.Array | None = None) -> jax.Array:
        """The observation of a state."""
        del key
        if params is None:
            raise ValueError("the observation of ClusterRouting needs its params")
        return OBSERVATIONS[self.observation](self.view(state, params), jnp)

    def observed(self, state: EnvState, params: EnvParams) -> Observed:
        """The observation of a state in its parts."""
        return observe(self.view(state, params), self.observation, jnp)

    def action_mask(self, observation: jax.Array) -> jax.Array:
        """[..., I + 1] bool, the allowed actions that an observation ends with."""
        return observation[..., -(self.instances + 1) :] > 0.5

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """[] bool, whether every request of the workload has finished."""
        return fleet.all_finished(_pick(params.workloads, state.index), state.cluster)

    def is_truncated(self, state: EnvState, params: EnvParams) -> jax.Array:
        """[] bool, whether the interval limit is reached or the run is void."""
        return (state.time >= params.max_steps_in_episode) | fleet.is_void(state.cluster)

    @property
    def name(self) -> str:
        """As registered with gymnax."""
        return "ClusterRouting-v0"

    @property
    def num_actions(self) -> int:
        """I + 1."""
        return self.instances + 1

    def action_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        """The instances, and hold."""
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: EnvParams) -> spaces.Box:
        """A vector without bounds."""
        shape = jax.eval_shape(lambda: self.reset_env(jax.random.key(0), params)[0]).shape
        return spaces.Box(-jnp.inf, jnp.inf, shape, jnp.float32)

    def _cluster(self, state: EnvState, params: EnvParams) -> ClusterParams:
        return params.cluster.replace(scrape_period=state.scrape_period)


def _pick(workloads: Workload, index: jax.Array) -> Workload:
    # A bank of one needs no gather, which vmap would turn into a copy in every step.
    one = workloads.num_requests.shape[0] == 1
    return jax.tree.map(lambda leaf: leaf[0] if one else leaf[index], workloads)
