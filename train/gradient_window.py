"""A window of T intervals of the relaxed fleet under the policy, through which its cost has a gradient.

Axis letters: E lanes, T intervals, I instances.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.env_types import EnvParams
from jaxroute.observation import Observed, global_features, instance_features, observe
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.relaxed import fleet
from jaxroute.relaxed.state import RelaxedState, all_finished, compacted, initial_state
from jaxroute.relaxed.straight_through import ESTIMATORS, is_allowed
from jaxroute.relaxed.view import backlog, relaxed_view
from jaxroute.train.config import GradientConfig
from jaxroute.train.critic import LEAST_STEP_S, LOOK_AHEAD_S, Judged, Work, work_of
from jaxroute.train.state import Params
from jaxroute.types import ClusterParams, RouterView, Workload


class RelaxedLanes(struct.PyTreeNode):
    """Lanes between two windows; every leaf has a leading [E].

    Attributes:
      number: [E] int32, of the lane among all of the run.
      index: [E] int32, the workload that it plays.
      scrape_period: [E] int32, router intervals between two scrapes.
      fleet: its servers and router.
      done: [E] bool, whether the episode has ended; the next window begins another one.
      return_scale: [E] float32, root of the mean square of the discounted returns, a running mean.
    """

    number: jax.Array
    index: jax.Array
    scrape_period: jax.Array
    fleet: RelaxedState
    done: jax.Array
    return_scale: jax.Array


class Window(NamedTuple):
    """What happened in one lane.

    Attributes:
      reward: [T] float32, minus the weighted seconds that requests spent in the system; differentiable.
      terminated: [T] bool, whether the last request had finished by the end of the interval.
      alive: [T] bool, whether there was anything left before it.
      judged: [T + 1], what the critic sees; differentiable.
      observed: [T], what the policy saw.
      decides: [T] float32, 1 where it had a choice.
      entropy: [T] float32, of its choices there; differentiable.
      sent: [I] float32, requests sent to each instance.
      no_row: [T] float32, 1 where the head had to wait for a free row.
    """

    reward: jax.Array
    terminated: jax.Array
    alive: jax.Array
    judged: Judged
    observed: Observed
    decides: jax.Array
    entropy: jax.Array
    sent: jax.Array
    no_row: jax.Array


class Moment(NamedTuple):
    """One interval: the fields of `Window`."""

    reward: jax.Array
    terminated: jax.Array
    alive: jax.Array
    judged: Judged
    observed: Observed
    decides: jax.Array
    entropy: jax.Array
    sent: jax.Array
    no_row: jax.Array


class Rules(NamedTuple):
    """What is static of a window. Attributes: gradient: settings; network: the policy's; steps: K of the fleet."""

    gradient: GradientConfig
    network: Scorer
    steps: int


def new_lanes(rules: Rules, params: EnvParams, number: jax.Array, key: jax.Array) -> RelaxedLanes:
    """Lanes at the start of an episode each.

    Args:
      rules: static parts.
      params: [E] leaves.
      number: [E] int32.
      key: typed key.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, number)
    index, period, fleets = jax.vmap(partial(_episode, rules))(params, keys)
    return RelaxedLanes(
        number=number,
        index=index,
        scrape_period=period,
        fleet=fleets,
        done=jnp.zeros(number.shape, bool),
        return_scale=jnp.ones(number.shape),
    )


def staggered(rules: Rules, params: EnvParams, lanes: RelaxedLanes) -> RelaxedLanes:
    """Every lane goes on under round robin to a point of its own, evenly spread over the arrivals; [E] leaves."""
    count = lanes.number.shape[0]

    def end_of(own: EnvParams, index: jax.Array) -> jax.Array:
        return own.workloads.visible_step[index, own.workloads.num_requests[index] - 1]

    until = (jax.vmap(end_of)(params, lanes.index) * jnp.arange(count, dtype=jnp.int32)) // count

    def one(own: EnvParams, lane: RelaxedLanes, end: jax.Array) -> RelaxedState:
        instances = own.cluster.instances.kv_blocks.shape[0]
        weights = jax.nn.one_hot(lane.fleet.dispatched % instances, instances)
        cluster, workload = _played(own, lane)
        after, _ = fleet.step(cluster, workload, lane.fleet, weights, steps=rules.steps)
        # A row is needed for each request: the free ones are put together in every interval.
        after = compacted(after)
        return jax.tree.map(lambda new, old: jnp.where(lane.fleet.now < end, new, old), after, lane.fleet)

    def body(now: RelaxedLanes) -> RelaxedLanes:
        return now.replace(fleet=jax.vmap(one)(params, now, until))

    return jax.lax.while_loop(lambda now: jnp.any(now.fleet.now < until), body, lanes)


def seen(params: EnvParams, lanes: RelaxedLanes) -> tuple[Observed, Judged]:
    """What policy and critic see of every lane now, [E] leaves."""

    def one(own: EnvParams, lane: RelaxedLanes) -> tuple[Observed, Judged]:
        cluster, workload = _played(own, lane)
        view = relaxed_view(cluster, workload, lane.fleet)
        judged = judge_relaxed(cluster, workload, work_of(workload), lane.fleet, view, lane.return_scale)
        return observe(view, "rich", jnp), judged

    return jax.vmap(one)(params, lanes)


def play_window(
    rules: Rules,
    policy: Params,
    scales: FeatureScales,
    params: EnvParams,
    lanes: RelaxedLanes,
    key: jax.Array,
) -> tuple[RelaxedLanes, Window]:
    """Lets every lane go on; what it was before is a constant to the gradient.

    Args:
      rules: static parts.
      policy: the scorer's weights.
      scales: of its features.
      params: [E] leaves.
      lanes: [E] leaves.
      key: typed key of the update; each lane's is folded from it.

    Returns:
      The lanes afterwards and what happened, [E] leaves.
    """
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, lanes.number)
    return jax.vmap(partial(_play_lane, rules, policy, scales))(params, lanes, keys)


def _play_lane(
    rules: Rules, policy: Params, scales: FeatureScales, params: EnvParams, lane: RelaxedLanes, key: jax.Array
) -> tuple[RelaxedLanes, Window]:
    key_reset, key_steps = jax.random.split(key)
    lane = _begun(rules, params, lane, key_reset)
    cluster, workload = _played(params, lane)
    work = work_of(workload)
    lane = lane.replace(fleet=compacted(lane.fleet))
    choose = ESTIMATORS[rules.gradient.estimator]

    @jax.checkpoint
    def step(state: RelaxedState, number: jax.Array) -> tuple[RelaxedState, Moment]:
        view = relaxed_view(cluster, workload, state)
        observed = observe(view, "rich", jnp)
        if not rules.gradient.through_observations:
            observed = jax.lax.stop_gradient(observed)
        logits = cast(jax.Array, rules.network.apply(policy, observed, scales))
        weights, _ = choose(jax.random.fold_in(key_steps, number), logits, rules.gradient.temperature)
        has_choice = jnp.sum(is_allowed(logits), dtype=jnp.int32) > 1
        before = all_finished(workload, state)
        after, spent = fleet.step(cluster, workload, state, weights[:-1], steps=rules.steps)
        sends = (after.dispatched > state.dispatched).astype(jnp.float32)
        waits = view.full[0] & (view.queue_length > 0)
        return after, Moment(
            reward=-spent,
            terminated=all_finished(workload, after),
            alive=~before,
            judged=judge_relaxed(cluster, workload, work, state, view, lane.return_scale),
            observed=jax.lax.stop_gradient(observed),
            decides=has_choice.astype(jnp.float32),
            entropy=jnp.where(has_choice, _entropy(logits), 0),
            sent=sends * jax.lax.stop_gradient(weights[:-1]),
            no_row=waits.astype(jnp.float32),
        )

    end, moments = jax.lax.scan(step, lane.fleet, jnp.arange(rules.gradient.window, dtype=jnp.int32))
    last = judge_relaxed(cluster, workload, work, end, relaxed_view(cluster, workload, end), lane.return_scale)
    judged = jax.tree.map(lambda leaf, one: jnp.concatenate([leaf, one[None]]), moments.judged, last)
    window = Window(*moments)._replace(judged=judged, sent=jnp.sum(moments.sent, axis=0))
    return lane.replace(fleet=jax.lax.stop_gradient(end), done=all_finished(workload, end)), window


def judge_relaxed(
    params: ClusterParams, workload: Workload, work: Work, state: RelaxedState, view: RouterView, scale: jax.Array
) -> Judged:
    """What the critic sees of a relaxed fleet: as `critic.judge`, and what waits at the instances as well.

    Arguments as there; differentiable by the weights of the requests.
    """
    servers = params.instances
    capacity = view.kv_tokens.astype(jnp.float32)
    facts = jnp.stack(
        [jnp.log(capacity / 10_000), 1 / (jnp.maximum(servers.step.W, LEAST_STEP_S) * 50)],
        axis=-1,
    )
    total = jnp.sum(capacity)
    coming = [_arrivals(workload, work, state, view.dt, seconds) / total for seconds in LOOK_AHEAD_S]
    whole = [
        (work.output[state.arrived] - work.output[state.dispatched]) / total,
        (work.prompt[state.arrived] - work.prompt[state.dispatched]) / total,
        jnp.log(scale),
        jnp.log(jnp.float32(capacity.shape[0])),
        jnp.log1p((workload.num_requests - state.arrived).astype(jnp.float32)),
        *coming,
    ]
    return Judged(
        whole=jnp.concatenate([global_features(view, jnp), jnp.stack(whole)]),
        instances=jnp.concatenate([instance_features(view, jnp), backlog(params, state), facts], axis=-1),
    )


def _arrivals(workload: Workload, work: Work, state: RelaxedState, dt: jax.Array, seconds: float) -> jax.Array:
    """[] float32, tokens of the requests that arrive within some seconds from now."""
    until = state.now + (seconds / dt).astype(jnp.int32)
    last = jnp.minimum(jnp.searchsorted(workload.visible_step, until, side="right"), workload.num_requests)
    return sum((sums[last] - sums[state.arrived] for sums in work), jnp.float32(0))


def _episode(rules: Rules, params: EnvParams, key: jax.Array) -> tuple[jax.Array, jax.Array, RelaxedState]:
    """A workload of the bank, an age of the metrics, and the fleet at its start; draws what `reset_env` draws."""
    key_index, key_period = jax.random.split(key)
    index = jax.random.randint(key_index, (), 0, params.workloads.num_requests.shape[0])
    period = jax.random.randint(key_period, (), params.scrape_periods[0], params.scrape_periods[1] + 1)
    workload = jax.tree.map(lambda leaf: leaf[index], params.workloads)
    return index, period, initial_state(params.cluster, workload, rules.gradient.rows)


def _begun(rules: Rules, params: EnvParams, lane: RelaxedLanes, key: jax.Array) -> RelaxedLanes:
    """The lane, with a new episode where the last one has ended."""
    index, period, state = _episode(rules, params, key)
    fresh = lane.replace(index=index, scrape_period=period, fleet=state)
    return jax.tree.map(lambda new, old: jnp.where(lane.done, new, old), fresh, lane)


def _played(params: EnvParams, lane: RelaxedLanes) -> tuple[ClusterParams, Workload]:
    """The lane's fleet and workload."""
    workload = jax.tree.map(lambda leaf: leaf[lane.index], params.workloads)
    return params.cluster.replace(scrape_period=lane.scrape_period), workload


def _entropy(logits: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.where(is_allowed(logits), jnp.exp(log_probs) * log_probs, 0))
