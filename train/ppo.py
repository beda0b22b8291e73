"""PPO: from a configuration to the static parts of a run, its first state, and its compiled program."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxroute.devices import AXIS
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.policies import HEURISTICS
from jaxroute.policies.network import FeatureScales
from jaxroute.train.config import TrainConfig
from jaxroute.train.critic import Critic, Judged, judge, work_of
from jaxroute.train.normalise import RunningScales
from jaxroute.train.optimiser import lenient
from jaxroute.train.prior import with_prior
from jaxroute.train.report import Metrics
from jaxroute.train.scorers import make_network
from jaxroute.train.stagger import staggered
from jaxroute.train.state import Lanes, TrainState
from jaxroute.train.update import Learner, update


def make_learner(config: TrainConfig, envs: tuple[ClusterRouting, ...]) -> Learner:
    """The static parts of a run."""
    ppo = config.ppo
    updates = max(1, round(ppo.total_steps / config.steps_of_an_update))
    steps = updates * ppo.epochs * ppo.minibatches
    rate = optax.linear_schedule(ppo.learning_rate, ppo.final_learning_rate, steps)
    critic_rate = optax.linear_schedule(ppo.critic_learning_rate, ppo.critic_learning_rate / 10, steps)

    def adam(rate: optax.Schedule) -> optax.GradientTransformation:
        return lenient(optax.chain(optax.clip_by_global_norm(ppo.max_grad_norm), optax.adam(rate, eps=1e-5)))

    return Learner(
        config=config,
        envs=envs,
        network=make_network(config.network, envs[0]),
        critic=Critic(config.network.critic_hidden),
        policy_optimiser=adam(rate),
        critic_optimiser=adam(critic_rate),
        teacher=HEURISTICS["round-robin" if ppo.teacher == "none" else ppo.teacher],
        twin=None if ppo.twin == "none" else HEURISTICS[ppo.twin],
        updates=updates,
    )


@partial(jax.jit, static_argnames=("learner",))
def initial_state(learner: Learner, params: tuple[EnvParams, ...], key: jax.Array) -> TrainState:
    """A run before its first update.

    Args:
      learner: static parts.
      params: of each group's environments, [E] leaves.
      key: typed key.
    """
    key_policy, key_critic, key_lanes, key_run = jax.random.split(key, 4)
    groups = []
    first = 0
    for env, own in zip(learner.envs, params, strict=True):
        count = own.penalty_weight.shape[0]
        number = jnp.arange(first, first + count, dtype=jnp.int32)
        first += count
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_lanes, number)
        _, states = jax.vmap(env.reset_env)(keys, own)
        states = staggered(env, HEURISTICS["round-robin"], own, states, key_lanes)
        groups.append(Lanes(number=number, env=states, done=jnp.zeros(count, bool), return_scale=jnp.ones(count)))
    observed = jax.vmap(learner.envs[0].observed)(groups[0].env, params[0])
    router, rows = observed.router.shape[-1], observed.instances.shape[-1]
    policy = learner.network.init(key_policy, observed, FeatureScales.identity(router, rows))
    policy = with_prior(policy, learner.config.network)
    critic = learner.critic.init(key_critic, _judged(learner.envs[0], params[0], groups[0]))
    return TrainState(
        policy=policy,
        critic=critic,
        policy_optimiser=learner.policy_optimiser.init(policy),
        critic_optimiser=learner.critic_optimiser.init(critic),
        scales=RunningScales.nothing(router, rows),
        groups=tuple(groups),
        update=jnp.int32(0),
        key=key_run,
    )


def _judged(env: ClusterRouting, params: EnvParams, lanes: Lanes) -> Judged:
    """What the critic sees of every lane, [E] leaves."""

    def one(own: EnvParams, lane: Lanes) -> Judged:
        workload = jax.tree.map(lambda leaf: leaf[lane.env.index], own.workloads)
        view = env.view(lane.env, own)
        return judge(own.cluster, workload, work_of(workload), lane.env.cluster, view, lane.return_scale)

    return jax.vmap(one)(params, lanes)


@partial(jax.jit, static_argnames=("learner", "mesh", "count"), donate_argnames=("states",))
def run_updates(
    learner: Learner, params: tuple[EnvParams, ...], states: TrainState, *, mesh: jax.sharding.Mesh, count: int
) -> tuple[TrainState, Metrics]:
    """`count` updates of every seed, one compiled program.

    Args:
      learner: static parts.
      params: of each group's environments, [E] leaves, spread over the mesh.
      states: [K] leaves, one run for each seed; lanes ([K, E]) spread over the mesh; donated.
      mesh: one axis, `lanes`, whose size divides every group's lanes.
      count: updates.

    Returns:
      The runs afterwards and their metrics, [count, K] leaves.
    """
    own = dataclasses.replace(learner, axis=AXIS)

    def local(params: tuple[EnvParams, ...], states: TrainState) -> tuple[TrainState, Metrics]:
        step = jax.vmap(partial(update, own), in_axes=(None, 0))
        return jax.lax.scan(lambda now, _: step(params, now), states, None, length=count)

    spread = state_specs(states)
    over = jax.sharding.PartitionSpec(AXIS)
    whole = jax.sharding.PartitionSpec()
    program = jax.shard_map(local, mesh=mesh, in_specs=(over, spread), out_specs=(spread, whole), check_vma=False)
    return program(params, states)


def state_specs(states: TrainState) -> TrainState:
    """How the leaves of [K] runs are spread over the mesh: lanes by lane, all else whole on every device."""
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), states)
    lanes = jax.tree.map(lambda _: jax.sharding.PartitionSpec(None, AXIS), states.groups)
    return specs.replace(groups=lanes)
