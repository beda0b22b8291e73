"""Double deep Q-learning, the algorithm of Jain et al. (appendix A.9): all on the device, one compiled program.

An update lets every lane go on for a rollout and writes it to the lane's replay memory (`replay`), then takes `passes`
gradient steps, each on a batch of which every lane's memory gives an equal share. Network, observation, validation and
the policy folder are those of the other algorithms; the policy's logits are the Q values.

Axis letters: E lanes of a group, K seeds.
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
from jaxroute.observation import Observed
from jaxroute.policies import HEURISTICS
from jaxroute.policies.network import FeatureScales
from jaxroute.train import replay
from jaxroute.train.config import TrainConfig
from jaxroute.train.dqn_learn import DqnLearner
from jaxroute.train.dqn_play import Explorers, Transition
from jaxroute.train.dqn_state import DqnMetrics, DqnState
from jaxroute.train.dqn_update import update
from jaxroute.train.normalise import RunningScales
from jaxroute.train.optimiser import lenient
from jaxroute.train.prior import with_prior
from jaxroute.train.scorers import make_network
from jaxroute.train.stagger import staggered
from jaxroute.train.state import Lanes


def steps_of_an_update(config: TrainConfig) -> int:
    """Router intervals of all lanes in one update."""
    return sum(fleets.lanes for fleets in config.fleets) * config.dqn.rollout


def make_learner(config: TrainConfig, envs: tuple[ClusterRouting, ...]) -> DqnLearner:
    """The static parts of a run."""
    own = config.dqn
    updates = max(1, round(own.total_steps / steps_of_an_update(config)))
    rate = optax.linear_schedule(own.learning_rate, own.final_learning_rate, updates * own.passes)
    adam = optax.chain(optax.clip_by_global_norm(own.max_grad_norm), optax.adam(rate))
    return DqnLearner(config, envs, make_network(config.network, envs[0]), lenient(adam), updates)


@partial(jax.jit, static_argnames=("learner",))
def initial_state(learner: DqnLearner, params: tuple[EnvParams, ...], key: jax.Array) -> DqnState:
    """A run before its first update; arguments as in `ppo.initial_state`."""
    key_policy, key_lanes, key_run = jax.random.split(key, 3)
    groups, seen, first = [], [], 0
    for env, own in zip(learner.envs, params, strict=True):
        count = own.penalty_weight.shape[0]
        number = jnp.arange(first, first + count, dtype=jnp.int32)
        first += count
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key_lanes, number)
        _, states = jax.vmap(env.reset_env)(keys, own)
        states = staggered(env, HEURISTICS["round-robin"], own, states, key_lanes)
        lanes = Lanes(number=number, env=states, done=jnp.zeros(count, bool), return_scale=jnp.ones(count))
        groups.append(Explorers(lanes=lanes, episode=jnp.zeros(count, jnp.int32)))
        seen.append(jax.vmap(env.observed)(states, own))
    router, features = seen[0].router.shape[-1], seen[0].instances.shape[-1]
    policy = learner.network.init(key_policy, seen[0], FeatureScales.identity(router, features))
    policy = with_prior(policy, learner.config.network)
    return DqnState(
        policy=policy,
        # Buffers of its own, as both are handed on to be used up.
        target=jax.tree.map(jnp.copy, policy),
        optimiser=learner.optimiser.init(policy),
        scales=RunningScales.nothing(router, features),
        groups=tuple(groups),
        memories=tuple(replay.empty(_row(observed), learner.rows) for observed in seen),
        update=jnp.int32(0),
        key=key_run,
    )


def _row(observed: Observed) -> Transition:
    """One row of every lane's memory, [E] leaves, of which only shapes and types count."""
    count = observed.mask.shape[0]
    number, flag = jnp.zeros(count), jnp.zeros(count, bool)
    return Transition(observed, number.astype(jnp.int32), number, number, flag, flag, flag)


@partial(jax.jit, static_argnames=("learner", "mesh", "count"), donate_argnames=("states",))
def run_updates(
    learner: DqnLearner, params: tuple[EnvParams, ...], states: DqnState, *, mesh: jax.sharding.Mesh, count: int
) -> tuple[DqnState, DqnMetrics]:
    """`count` updates of every seed, one compiled program; arguments and results as in `ppo.run_updates`."""
    own = dataclasses.replace(learner, axis=AXIS)

    def local(params: tuple[EnvParams, ...], states: DqnState) -> tuple[DqnState, DqnMetrics]:
        def step(now: DqnState, _: None) -> tuple[DqnState, DqnMetrics]:
            # All seeds are at the same update, and so is where they write: one place, not one of each.
            return jax.vmap(partial(update, own), in_axes=(None, 0, None))(params, now, now.update[0])

        return jax.lax.scan(step, states, None, length=count)

    spread, over, whole = state_specs(states), jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()
    program = jax.shard_map(local, mesh=mesh, in_specs=(over, spread), out_specs=(spread, whole), check_vma=False)
    return program(params, states)


def state_specs(states: DqnState) -> DqnState:
    """How the leaves of [K] runs are spread over the mesh: lanes by lane, all else whole on every device."""
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), states)
    by_lane = jax.tree.map(lambda _: jax.sharding.PartitionSpec(None, AXIS), (states.groups, states.memories))
    return specs.replace(groups=by_lane[0], memories=by_lane[1])
