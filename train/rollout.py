"""Experience: every lane of a group goes on for T intervals under the policy, a twin under a heuristic beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import distrax
import jax
import jax.numpy as jnp

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.observation import Observed
from jaxroute.policies.in_turn import in_turn
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.train.critic import Judged, Work, judge, work_of
from jaxroute.train.state import Lanes, Params


class Path(NamedTuple):
    """What happened in one lane, for the critic.

    Attributes:
      judged: [T + 1] what the critic sees before every interval and after the last.
      reward: [T] float32.
      terminated: [T] bool, whether the last request finished in the interval.
      ended: [T] bool, whether the episode ended or was cut off with it.
    """

    judged: Judged
    reward: jax.Array
    terminated: jax.Array
    ended: jax.Array


class Experience(NamedTuple):
    """One rollout of one group; leading axes [E, T].

    Attributes:
      observed: before each interval.
      action: int32.
      log_prob: float32, of the action under the policy that took it.
      teacher: int32, the action that the teacher would have taken.
      alive: bool, whether the episode had not ended before.
      path: of the policy.
      twin: of the heuristic beside it, from the same state at the start of the rollout; None without twins.
      preemptions: [E] int32, of the rollout.
    """

    observed: Observed
    action: jax.Array
    log_prob: jax.Array
    teacher: jax.Array
    alive: jax.Array
    path: Path
    twin: Path | None
    preemptions: jax.Array


class Moment(NamedTuple):
    """One interval of one lane: the fields of `Experience` without axes, and those of `Path` likewise."""

    observed: Observed
    action: jax.Array
    log_prob: jax.Array
    teacher: jax.Array
    alive: jax.Array
    path: Path
    twin: Path | None


class Twin(NamedTuple):
    """The same fleet and requests under a heuristic. Attributes: env: its state; policy: the heuristic's own."""

    env: EnvState
    policy: PolicyState


Carry = tuple[EnvState, jax.Array, PolicyState, Twin | None]
"""Of a lane from one interval to the next: its state, whether its episode goes on, the teacher's state, the twin."""


def action_logits(network: Scorer, weights: Params, observed: Observed, scales: FeatureScales) -> jax.Array:
    """[..., I + 1] float32, the network's logits; those of masked actions are the least finite float32."""
    return cast(jax.Array, network.apply(weights, observed, scales))


def action_distribution(
    network: Scorer, weights: Params, observed: Observed, scales: FeatureScales
) -> distrax.Categorical:
    """The policy's distribution over the I + 1 actions; those that are masked have no probability."""
    return distrax.Categorical(logits=action_logits(network, weights, observed, scales))


def collect(
    env: ClusterRouting,
    params: EnvParams,
    network: Scorer,
    weights: Params,
    scales: FeatureScales,
    lanes: Lanes,
    key: jax.Array,
    *,
    length: int,
    teacher: Policy,
    twin: Policy | None,
) -> tuple[Lanes, Experience]:
    """Lets every lane of a group go on.

    Args:
      env: the environment of the group.
      params: [E] leaves.
      network: the policy's.
      weights: its weights.
      scales: of its features.
      lanes: [E] leaves; those that are done begin a new episode first.
      key: typed key of the update; each lane's is folded from it.
      length: T, intervals.
      teacher: whose action is noted in every interval.
      twin: what routes beside the policy, or None.

    Returns:
      The lanes afterwards, and what happened.
    """
    one = partial(_collect_lane, env, network, weights, scales, length=length, teacher=teacher, twin=twin)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, lanes.number)
    return jax.vmap(one)(params, lanes, keys)


def _collect_lane(
    env: ClusterRouting,
    network: Scorer,
    weights: Params,
    scales: FeatureScales,
    params: EnvParams,
    lane: Lanes,
    key: jax.Array,
    *,
    length: int,
    teacher: Policy,
    twin: Policy | None,
) -> tuple[Lanes, Experience]:
    key_reset, key_steps = jax.random.split(key)
    routers = env.config.routers
    teacher, twin = in_turn(teacher, routers), None if twin is None else in_turn(twin, routers)
    state = begun(env, params, lane, key_reset)
    # The workload of this rollout, taken out of the bank once instead of in every interval.
    params = params.replace(workloads=jax.tree.map(lambda leaf: leaf[state.index][None], params.workloads))
    workload = jax.tree.map(lambda leaf: leaf[0], params.workloads)
    judged = partial(_judged, env, params, work_of(workload), lane.return_scale)

    def step(carry: Carry, number: jax.Array) -> tuple[Carry, Moment]:
        state, alive, teacher_state, beside = carry
        key_action, key_step, key_teacher, key_twin = jax.random.split(jax.random.fold_in(key_steps, number), 4)
        observed = env.observed(state, params)
        distribution = action_distribution(network, weights, observed, scales)
        action = distribution.sample(seed=key_action)
        advice, teacher_state = teacher.act(teacher_state, env.view(state, params), key_teacher)
        _, after, reward, terminated, _ = env.step_env(key_step, state, action, params)
        ends = terminated | env.is_truncated(after, params)
        path = Path(judged(state), jnp.where(alive, reward, 0), terminated, ends)
        beside, twin_path = _twin_step(env, params, twin, judged, beside, key_twin)
        moment = Moment(observed, action, distribution.log_prob(action), advice, alive, path, twin_path)
        return (after, alive & ~ends, teacher_state, beside), moment

    start = None if twin is None else Twin(state, twin.initial_state(env.instances))
    carry = (state, jnp.bool(True), teacher.initial_state(env.instances), start)
    (end, alive, _, beside), moments = jax.lax.scan(step, carry, jnp.arange(length, dtype=jnp.int32))
    experience = Experience(
        observed=moments.observed,
        action=moments.action,
        log_prob=moments.log_prob,
        teacher=moments.teacher,
        alive=moments.alive,
        path=_closed(moments.path, judged(end)),
        twin=None if beside is None or moments.twin is None else _closed(moments.twin, judged(beside.env)),
        preemptions=jnp.sum(end.cluster.engines.preemptions - state.cluster.engines.preemptions, dtype=jnp.int32),
    )
    return lane.replace(env=end, done=~alive), experience


def _twin_step(
    env: ClusterRouting,
    params: EnvParams,
    policy: Policy | None,
    judged: Callable[[EnvState], Judged],
    beside: Twin | None,
    key: jax.Array,
) -> tuple[Twin | None, Path | None]:
    """One interval of the twin, if there is one; nothing counts once its last request has finished."""
    if policy is None or beside is None:
        return None, None
    action, own = policy.act(beside.policy, env.view(beside.env, params), key)
    done = env.is_terminated(beside.env, params)
    _, after, reward, terminated, _ = env.step_env(key, beside.env, action, params)
    ended = terminated | env.is_truncated(after, params)
    path = Path(judged(beside.env), jnp.where(done, 0, reward), terminated, ended)
    return Twin(after, own), path


def begun(env: ClusterRouting, params: EnvParams, lane: Lanes, key: jax.Array) -> EnvState:
    """The lane's state, or that of a new episode where the last one has ended."""
    _, fresh = env.reset_env(key, params)
    return jax.tree.map(lambda new, old: jnp.where(lane.done, new, old), fresh, lane.env)


def _judged(env: ClusterRouting, params: EnvParams, work: Work, scale: jax.Array, state: EnvState) -> Judged:
    workload = jax.tree.map(lambda leaf: leaf[0], params.workloads)
    return judge(params.cluster, workload, work, state.cluster, env.view(state, params), scale)


def _closed(path: Path, last: Judged) -> Path:
    """The path with what the critic sees after its last interval."""
    judged = jax.tree.map(lambda leaf, one: jnp.concatenate([leaf, one[None]]), path.judged, last)
    return path._replace(judged=judged)
