"""Learning to route by gradient: the derivative of the latencies goes through the relaxed fleet into the policy.

A window of T intervals is played in every lane with straight-through choices; its discounted latencies and the
critic's value of where it ends are differentiated by the policy's weights (short-horizon actor-critic, Xu et al.,
2022). The critic is fitted to TD(lambda) targets of the same window. Network, observation, prior and greedy policy are
those of PPO.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxroute.devices import AXIS
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.observation import count_columns
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.advantage import discounted_returns, generalised_advantage
from jaxroute.train.config import TrainConfig
from jaxroute.train.critic import Critic, value_of
from jaxroute.train.gradient_window import RelaxedLanes, Rules, Window, new_lanes, play_window, seen, staggered
from jaxroute.train.normalise import RunningScales
from jaxroute.train.optimiser import lenient
from jaxroute.train.prior import with_prior
from jaxroute.train.state import Params
from jaxroute.train.update import SCALE_MEMORY


class GradientState(struct.PyTreeNode):
    """A run between two updates; the attributes of `TrainState`, with relaxed lanes."""

    policy: Params
    critic: Params
    policy_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    scales: RunningScales
    groups: tuple[RelaxedLanes, ...]
    update: jax.Array
    key: jax.Array


class GradientMetrics(NamedTuple):
    """Of one update; every field [] float32.

    Attributes:
      reward: mean reward of an interval in units of its lane's scale.
      entropy: of the choices, mean.
      value_loss: of the critic, in its last pass.
      explained: share of the variance of the targets that the critic explains.
      busiest: most over mean dispatches of an instance, the largest of the groups.
      decisions: share of the intervals with something to decide.
      gradient_norm: of the policy's gradient before it is clipped.
      no_row: share of the intervals in which a request waited for a free row.
    """

    reward: jax.Array
    entropy: jax.Array
    value_loss: jax.Array
    explained: jax.Array
    busiest: jax.Array
    decisions: jax.Array
    gradient_norm: jax.Array
    no_row: jax.Array


@dataclasses.dataclass(frozen=True)
class GradientLearner:
    """The static parts of a run (hashable: a jit argument).

    Attributes:
      config: the run's.
      rules: of each group's windows.
      network, critic: modules.
      policy_optimiser, critic_optimiser: optax transformations.
      updates: of the whole run.
      axis: mesh axis over which lanes are spread, or None.
    """

    config: TrainConfig
    rules: tuple[Rules, ...]
    network: Scorer
    critic: Critic
    policy_optimiser: optax.GradientTransformation
    critic_optimiser: optax.GradientTransformation
    updates: int
    axis: str | None = None

    def discount(self, seconds: float, group: int) -> float:
        """Factor per interval of something that falls to 1/e within `seconds`."""
        return math.exp(-self.config.fleets[group].dt / seconds)

    def total(self, value: Any) -> Any:
        """Sums over the devices."""
        return value if self.axis is None else jax.lax.psum(value, self.axis)


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


def update(
    learner: GradientLearner, params: tuple[EnvParams, ...], state: GradientState
) -> tuple[GradientState, GradientMetrics]:
    """Plays a window in every lane, descends the gradient of its cost, and fits the critic to it."""
    key = jax.random.fold_in(state.key, state.update)
    scales = state.scales.fixed()

    def cost(policy: Params) -> tuple[jax.Array, tuple[tuple[RelaxedLanes, ...], list[Window]]]:
        return window_cost(learner, params, state, policy, scales, key)

    (_, (groups, windows)), gradient = jax.value_and_grad(cost, has_aux=True)(state.policy)
    gradient = learner.total(gradient)
    step, policy_state = learner.policy_optimiser.update(gradient, state.policy_optimiser, state.policy)
    windows = jax.lax.stop_gradient(windows)
    critic, critic_state, value_loss, explained = _fit_critic(learner, state, groups, windows)
    alive = [window.alive.astype(jnp.float32) for window in windows]
    after = state.replace(
        policy=optax.apply_updates(state.policy, step),
        critic=critic,
        policy_optimiser=policy_state,
        critic_optimiser=critic_state,
        scales=state.scales.updated([window.observed for window in windows], alive, learner.axis),
        groups=groups,
        update=state.update + 1,
    )
    return after, _metrics(learner, groups, windows, value_loss, explained, optax.tree.norm(gradient))


def window_cost(
    learner: GradientLearner,
    params: tuple[EnvParams, ...],
    state: GradientState,
    policy: Params,
    scales: FeatureScales,
    key: jax.Array,
) -> tuple[jax.Array, tuple[tuple[RelaxedLanes, ...], list[Window]]]:
    """What the windows of this device's lanes cost under a policy, per decision of all devices; [] float32.

    Returns:
      The cost, in units of the lanes' scales; the lanes afterwards, and what happened.
    """
    own = learner.config.gradient
    progress = state.update.astype(jnp.float32) / learner.updates
    entropy_weight = own.entropy + progress * (own.final_entropy - own.entropy)
    cost, decided = jnp.float32(0), jnp.float32(0)
    groups, windows = [], []
    for number, (rules, each) in enumerate(zip(learner.rules, params, strict=True)):
        lanes, window = play_window(rules, policy, scales, each, state.groups[number], key)
        lanes = _rescaled(learner, number, lanes, window, state.update)
        discount = learner.discount(learner.config.reward.horizon_s, number)
        factors = discount ** jnp.arange(own.window, dtype=jnp.float32)
        last = jax.tree.map(lambda leaf: leaf[:, -1], window.judged)
        value = jnp.where(lanes.done, 0, value_of(learner.critic, state.critic, last))
        scaled = window.reward / lanes.return_scale[:, None]
        cost -= jnp.sum(scaled * factors[None]) + jnp.sum(discount**own.window * value)
        cost -= entropy_weight * jnp.sum(window.entropy)
        decided += jnp.sum(window.decides)
        groups.append(lanes)
        windows.append(window)
    cost = cost / jnp.maximum(learner.total(jax.lax.stop_gradient(decided)), 1)
    return cost, (tuple(groups), windows)


def _rescaled(
    learner: GradientLearner, group: int, lanes: RelaxedLanes, window: Window, updates: jax.Array
) -> RelaxedLanes:
    """The lanes with the scale of their returns moved towards that of this window."""
    discount = learner.discount(learner.config.reward.horizon_s, group)
    reward = jax.lax.stop_gradient(window.reward)
    returns = jax.vmap(lambda own, ended: discounted_returns(own, ended, discount))(reward, window.terminated)
    seen = jnp.sqrt(jnp.mean(returns**2, axis=-1))
    memory = jnp.where(updates == 0, 0, SCALE_MEMORY)
    return lanes.replace(return_scale=jnp.maximum(memory * lanes.return_scale + (1 - memory) * seen, 1e-3))


def _fit_critic(
    learner: GradientLearner, state: GradientState, groups: tuple[RelaxedLanes, ...], windows: list[Window]
) -> tuple[Params, optax.OptState, jax.Array, jax.Array]:
    """The critic after its passes, its optimiser's state, its loss, and the share of the variance explained before."""
    own = learner.config.gradient
    targets, errors = [], []
    for number, (lanes, window) in enumerate(zip(groups, windows, strict=True)):
        value = value_of(learner.critic, state.critic, window.judged)
        estimate = partial(
            generalised_advantage,
            discount=learner.discount(learner.config.reward.horizon_s, number),
            decay=learner.discount(own.td_s, number),
        )
        scaled = window.reward / lanes.return_scale[:, None]
        error = jax.vmap(estimate)(scaled, value, window.terminated, window.terminated)
        errors.append(error)
        targets.append(error + value[:, :-1])
    alive = [window.alive.astype(jnp.float32) for window in windows]
    count = jnp.maximum(learner.total(sum(jnp.sum(each) for each in alive)), 1)

    def loss(weights: Params) -> jax.Array:
        whole = jnp.float32(0)
        for window, target, lives in zip(windows, targets, alive, strict=True):
            judged = jax.tree.map(lambda leaf: leaf[:, :-1], window.judged)
            error = value_of(learner.critic, weights, judged) - target
            whole += 0.5 * jnp.sum(lives * error**2)
        return whole / count

    def one(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], jax.Array]:
        weights, optimiser = carry
        value, gradient = learner.total(jax.value_and_grad(loss)(weights))
        step, optimiser = learner.critic_optimiser.update(gradient, optimiser, weights)
        return (optax.apply_updates(weights, step), optimiser), value

    (critic, optimiser), losses = jax.lax.scan(
        one, (state.critic, state.critic_optimiser), None, length=own.critic_passes
    )
    return critic, optimiser, losses[-1], _explained(learner, targets, errors, alive, count)


def _explained(
    learner: GradientLearner,
    targets: list[jax.Array],
    errors: list[jax.Array],
    alive: list[jax.Array],
    count: jax.Array,
) -> jax.Array:
    def total(values: list[jax.Array]) -> jax.Array:
        return learner.total(sum(jnp.sum(lives * value) for lives, value in zip(alive, values, strict=True)))

    mean = total(targets) / count
    spread = total([(target - mean) ** 2 for target in targets])
    return 1 - total([error**2 for error in errors]) / jnp.maximum(spread, 1e-12)


def _metrics(
    learner: GradientLearner,
    groups: tuple[RelaxedLanes, ...],
    windows: list[Window],
    value_loss: jax.Array,
    explained: jax.Array,
    norm: jax.Array,
) -> GradientMetrics:
    def total(values: list[jax.Array]) -> jax.Array:
        return learner.total(jnp.sum(jnp.stack([jnp.sum(value) for value in values])))

    lived = jnp.maximum(total([window.alive.astype(jnp.float32) for window in windows]), 1)
    decided = total([window.decides for window in windows])
    busiest = []
    for window in windows:
        mean = jnp.maximum(jnp.mean(window.sent, axis=-1), 1e-9)
        shares = jnp.where(jnp.sum(window.sent, axis=-1) > 0, jnp.max(window.sent, axis=-1) / mean, 1)
        lanes = learner.total(jnp.float32(shares.shape[0]))
        busiest.append(learner.total(jnp.sum(shares)) / lanes)
    scaled = [each.reward / lanes.return_scale[:, None] for each, lanes in zip(windows, groups, strict=True)]
    return GradientMetrics(
        reward=total(scaled) / lived,
        entropy=total([window.entropy for window in windows]) / jnp.maximum(decided, 1),
        value_loss=value_loss,
        explained=explained,
        busiest=jnp.max(jnp.stack(busiest)),
        decisions=decided / lived,
        gradient_norm=norm,
        no_row=total([window.no_row for window in windows]) / lived,
    )
