"""Learning to route by gradient: the derivative of the latencies goes through the relaxed fleet into the policy.

A window of T intervals is played in every lane with straight-through choices; its discounted latencies and the
critic's value of where it ends are differentiated by the policy's weights (short-horizon actor-critic, Xu et al.,
2022). The critic is fitted to TD(lambda) targets of the same window. Network, observation, prior and greedy policy are
those of PPO.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxroute.devices import AXIS
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.observation import count_columns
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.config import TrainConfig
from jaxroute.train.critic import Critic
from jaxroute.train.gradient_state import GradientMetrics, GradientState
from jaxroute.train.gradient_update import GradientLearner, update
from jaxroute.train.gradient_window import Rules, new_lanes, seen, staggered
from jaxroute.train.normalise import RunningScales
from jaxroute.train.optimiser import lenient
from jaxroute.train.prior import with_prior


def steps_of_an_update(config: TrainConfig) -> int:
    """Router intervals of all lanes in one update."""
    return sum(fleets.lanes for fleets in config.fleets) * config.gradient.window


def gradient_updates(config: TrainConfig) -> int:
    """Updates of the whole run; 0 where there are none."""
    steps = config.gradient.total_steps
    return max(1, round(steps / steps_of_an_update(config))) if steps else 0


def make_learner(config: TrainConfig, envs: tuple[ClusterRouting, ...]) -> GradientLearner:
    """The static parts of a run."""
    own = config.gradient
    updates = gradient_updates(config)
    rate = optax.linear_schedule(own.learning_rate, own.final_learning_rate, max(updates, 1))
    steps = updates * own.critic_passes
    critic_rate = optax.linear_schedule(own.critic_learning_rate, own.critic_learning_rate / 10, steps)

    def adam(rate: optax.Schedule) -> optax.GradientTransformation:
        return lenient(optax.chain(optax.clip_by_global_norm(own.max_grad_norm), optax.adam(rate, eps=1e-8)))

    columns = count_columns(config.network.observation, envs[0].config.buckets)
    network = Scorer(config.network.hidden, config.network.holds, columns)
    return GradientLearner(
        config=config,
        rules=tuple(Rules(own, network, env.config.max_steps_per_interval) for env in envs),
        network=network,
        critic=Critic(config.network.critic_hidden),
        policy_optimiser=adam(rate),
        critic_optimiser=adam(critic_rate),
        updates=updates,
    )


@partial(jax.jit, static_argnames=("learner",))
def initial_state(learner: GradientLearner, params: tuple[EnvParams, ...], key: jax.Array) -> GradientState:
    """A run before its first update; arguments as in `ppo.initial_state`."""
    key_policy, key_critic, key_lanes, key_run = jax.random.split(key, 4)
    groups = []
    first = 0
    for rules, own in zip(learner.rules, params, strict=True):
        count = own.penalty_weight.shape[0]
        lanes = new_lanes(rules, own, jnp.arange(first, first + count, dtype=jnp.int32), key_lanes)
        groups.append(staggered(rules, own, lanes))
        first += count
    observed, judged = seen(params[0], groups[0])
    router, rows = observed.router.shape[-1], observed.instances.shape[-1]
    policy = learner.network.init(key_policy, observed, FeatureScales.identity(router, rows))
    policy = with_prior(policy, learner.config.network)
    critic = learner.critic.init(key_critic, judged)
    return GradientState(
        policy=policy,
        critic=critic,
        policy_optimiser=learner.policy_optimiser.init(policy),
        critic_optimiser=learner.critic_optimiser.init(critic),
        scales=RunningScales.nothing(router, rows),
        groups=tuple(groups),
        update=jnp.int32(0),
        key=key_run,
    )


@partial(jax.jit, static_argnames=("learner", "mesh", "count"), donate_argnames=("states",))
def run_updates(
    learner: GradientLearner,
    params: tuple[EnvParams, ...],
    states: GradientState,
    *,
    mesh: jax.sharding.Mesh,
    count: int,
) -> tuple[GradientState, GradientMetrics]:
    """`count` updates of every seed, one compiled program; arguments and results as in `ppo.run_updates`."""
    own = dataclasses.replace(learner, axis=AXIS)

    def local(params: tuple[EnvParams, ...], states: GradientState) -> tuple[GradientState, GradientMetrics]:
        step = jax.vmap(partial(update, own), in_axes=(None, 0))
        return jax.lax.scan(lambda now, _: step(params, now), states, None, length=count)

    spread, over, whole = state_specs(states), jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()
    program = jax.shard_map(local, mesh=mesh, in_specs=(over, spread), out_specs=(spread, whole), check_vma=False)
    return program(params, states)


def state_specs(states: GradientState) -> GradientState:
    """How the leaves of [K] runs are spread over the mesh: lanes by lane, all else whole on every device."""
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), states)
    lanes = jax.tree.map(lambda _: jax.sharding.PartitionSpec(None, AXIS), states.groups)
    return specs.replace(groups=lanes)
