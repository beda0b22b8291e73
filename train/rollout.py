"""Experience: every lane of a group goes on for T intervals under the policy, a twin under a heuristic beside it."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.observation import Observed
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


def action_distribution(
    network: Scorer, params: Params, observed: Observed, scales: FeatureScales
) -> distrax.Categorical:
    """The policy's distribution over the I + 1 actions; those that are masked have no probability."""
    return distrax.Categorical(logits=network.apply(params, observed, scales))


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
    state = _begun(env, params, lane, key_reset)
    # The workload of this rollout, taken out of the bank once instead of in every interval.
    params = params.replace(workloads=jax.tree.map(lambda leaf: leaf[state.index][None], params.workloads))
    workload = jax.tree.map(lambda leaf: leaf[0], params.workloads)
    judged = partial(_judged, env, params, work_of(workload), lane.return_scale)

    def step(carry: tuple[EnvState, jax.Array, PolicyState, Twin | None], number: jax.Array):  # noqa: ANN202
        state, alive, teacher_state, beside = carry
        key_action, key_step, key_teacher, key_twin = jax.random.split(jax.random.fold_in(key_steps, number), 4)
        observed = env.observed(state, params)
        action, log_prob = action_distribution(network, weights, observed, scales).sample_and_log_prob(seed=key_action)
        advice, teacher_state = teacher.act(teacher_state, env.view(state, params), key_teacher)
        seen = judged(state)
        _, after, reward, terminated, _ = env.step_env(key_step, state, action, params)
        ends = terminated | env.is_truncated(after, params)
        note = (observed, action, log_prob, advice, alive, seen, jnp.where(alive, reward, 0), terminated, ends)
        beside, beside_note = _twin_step(env, params, twin, judged, beside, key_twin)
        return (after, alive & ~ends, teacher_state, beside), (note, beside_note)

    start = None if twin is None else Twin(state, twin.initial_state(env.instances))
    carry = (state, jnp.bool(True), teacher.initial_state(env.instances), start)
    (end, alive, _, beside), (note, beside_note) = jax.lax.scan(step, carry, jnp.arange(length, dtype=jnp.int32))
    observed, action, log_prob, advice, was_alive, seen, reward, terminated, ended = note
    twin_path = None if beside is None else Path(_with_last(beside_note[0], judged(beside.env)), *beside_note[1:])
    experience = Experience(
        observed=observed,
        action=action,
        log_prob=log_prob,
        teacher=advice,
        alive=was_alive,
        path=Path(_with_last(seen, judged(end)), reward, terminated, ended),
        twin=twin_path,
        preemptions=jnp.sum(end.cluster.engines.preemptions - state.cluster.engines.preemptions, dtype=jnp.int32),
    )
    return lane.replace(env=end, done=~alive), experience


class Twin(NamedTuple):
    """The same fleet and requests under a heuristic. Attributes: env: its state; policy: the heuristic's own."""

    env: EnvState
    policy: PolicyState


def _twin_step(env, params, policy, judged, beside: Twin | None, key: jax.Array):  # noqa: ANN001, ANN202
    if beside is None:
        return None, None
    action, own = policy.act(beside.policy, env.view(beside.env, params), key)
    seen = judged(beside.env)
    done = env.is_terminated(beside.env, params)
    _, after, reward, terminated, _ = env.step_env(key, beside.env, action, params)
    return Twin(after, own), (seen, jnp.where(done, 0, reward), terminated, terminated)


def _begun(env: ClusterRouting, params: EnvParams, lane: Lanes, key: jax.Array) -> EnvState:
    """The lane's state, or that of a new episode where the last one has ended."""
    _, fresh = env.reset_env(key, params)
    return jax.tree.map(lambda new, old: jnp.where(lane.done, new, old), fresh, lane.env)


def _judged(env: ClusterRouting, params: EnvParams, work: Work, scale: jax.Array, state: EnvState) -> Judged:
    workload = jax.tree.map(lambda leaf: leaf[0], params.workloads)
    return judge(params.cluster, workload, work, state.cluster, env.view(state, params), scale)


def _with_last(many: Judged, last: Judged) -> Judged:
    return jax.tree.map(lambda leaf, one: jnp.concatenate([leaf, one[None]]), many, last)
