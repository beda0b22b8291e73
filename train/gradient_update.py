"""One update of learning by gradient: a window in every lane, its cost, and the critic of where it ends."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxroute.env_types import EnvParams
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.advantage import discounted_returns, generalised_advantage
from jaxroute.train.config import TrainConfig
from jaxroute.train.critic import Critic, value_of
from jaxroute.train.gradient_state import GradientMetrics, GradientState
from jaxroute.train.gradient_window import RelaxedLanes, Rules, Window, play_window
from jaxroute.train.learner import OnMesh
from jaxroute.train.state import Params
from jaxroute.train.update import SCALE_MEMORY


@dataclasses.dataclass(frozen=True)
class GradientLearner(OnMesh):
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
