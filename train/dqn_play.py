"""Experience for Q-learning: every lane goes on for T intervals, exploring as the paper does.

Axis letters: E lanes of a group, T intervals, I instances.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.impact import mixing_penalty
from jaxroute.observation import Observed
from jaxroute.policies.choose import first_of_highest
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.config import DqnConfig
from jaxroute.train.rollout import action_logits, begun
from jaxroute.train.state import Lanes, Params


class Explorers(struct.PyTreeNode):
    """One group of lanes between two rollouts; every leaf has a leading [E].

    Attributes:
      lanes: of the other algorithms; their scale of returns stays 1.
      episode: [E] int32, number of the lane's episode among its own.
    """

    lanes: Lanes
    episode: jax.Array


class Transition(NamedTuple):
    """One interval of one lane.

    Attributes:
      observed: before it.
      action: int32.
      reward: float32, without the mixing penalty.
      penalty: float32, the mixing penalty of the action.
      terminated: bool, whether the last request finished in it.
      ended: bool, whether the episode ended or was cut off with it.
      alive: bool, whether the episode had not ended before.
    """

    observed: Observed
    action: jax.Array
    reward: jax.Array
    penalty: jax.Array
    terminated: jax.Array
    ended: jax.Array
    alive: jax.Array


class Played(NamedTuple):
    """Facts of a rollout, for its metrics. Attributes: exploration: [E] mean chance; preemptions: [E] int32."""

    exploration: jax.Array
    preemptions: jax.Array


Carry = tuple[EnvState, jax.Array]
"""Of a lane from one interval to the next: its state, and whether its episode goes on."""


def exploration(config: DqnConfig, episode: jax.Array, seconds: jax.Array) -> jax.Array:
    """[...] float32, the chance of a random action.

    Args:
      config: of the run.
      episode: [...] int32, number of the episode among those of all lanes.
      seconds: [...] float32, since its start.
    """
    decayed = config.exploration * config.exploration_decay ** (seconds / config.exploration_decay_s)
    explores = episode < config.exploration_episodes
    return jnp.maximum(jnp.where(explores, decayed, 0), config.final_exploration)


def explore(
    env: ClusterRouting,
    params: EnvParams,
    network: Scorer,
    weights: Params,
    scales: FeatureScales,
    explorers: Explorers,
    key: jax.Array,
    *,
    config: DqnConfig,
    lanes: int,
) -> tuple[Explorers, Transition, Played]:
    """Lets every lane of a group go on.

    Args:
      env: the environment of the group.
      params: [E] leaves.
      network: of the Q values.
      weights: its weights.
      scales: of its features.
      explorers: [E] leaves; those that are done begin a new episode first.
      key: typed key of the update; each lane's is folded from it.
      config: of the run.
      lanes: of the whole run.

    Returns:
      The lanes afterwards, what happened ([E, T] leaves), and facts.
    """
    one = partial(_explore_lane, env, network, weights, scales, config=config, lanes=lanes)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, explorers.lanes.number)
    return jax.vmap(one)(params, explorers, keys)


def _explore_lane(
    env: ClusterRouting,
    network: Scorer,
    weights: Params,
    scales: FeatureScales,
    params: EnvParams,
    explorer: Explorers,
    key: jax.Array,
    *,
    config: DqnConfig,
    lanes: int,
) -> tuple[Explorers, Transition, Played]:
    key_reset, key_steps = jax.random.split(key)
    lane = explorer.lanes
    state = begun(env, params, lane, key_reset)
    episode = explorer.episode + lane.done.astype(jnp.int32)
    number = episode * lanes + lane.number
    # As in `rollout`; and the penalty is kept apart, as its weight changes while it is remembered.
    own = jax.tree.map(lambda leaf: leaf[state.index][None], params.workloads)
    params = params.replace(workloads=own, penalty_weight=jnp.zeros_like(params.penalty_weight))

    def step(carry: Carry, index: jax.Array) -> tuple[Carry, tuple[Transition, jax.Array]]:
        state, alive = carry
        key_explore, key_action, key_step = jax.random.split(jax.random.fold_in(key_steps, index), 3)
        observed = env.observed(state, params)
        chance = exploration(config, number, state.time.astype(jnp.float32) * params.cluster.dt.seconds)
        at_random = jax.random.categorical(key_action, jnp.where(network.allowed(observed), 0.0, -jnp.inf))
        greedy = first_of_highest(action_logits(network, weights, observed, scales))
        action = jnp.where(jax.random.uniform(key_explore) < chance, at_random.astype(jnp.int32), greedy)
        penalty = mixing_penalty(env.view(state, params), action, jnp)
        _, after, reward, terminated, _ = env.step_env(key_step, state, action, params)
        ends = terminated | env.is_truncated(after, params)
        moment = Transition(observed, action, reward, penalty, terminated, ends, alive)
        return (after, alive & ~ends), (moment, chance)

    (end, alive), (moments, chances) = jax.lax.scan(
        step, (state, jnp.bool(True)), jnp.arange(config.rollout, dtype=jnp.int32)
    )
    before, after = state.cluster.engines.preemptions, end.cluster.engines.preemptions
    played = Played(jnp.mean(chances), jnp.sum(after - before, dtype=jnp.int32))
    return Explorers(lanes=lane.replace(env=end, done=~alive), episode=episode), moments, played
