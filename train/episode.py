"""Whole episodes, from the first request to the last finish, and what they cost: what validation and evolution judge."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxroute.cluster import clock, fleet
from jaxroute.cluster.state import ClusterState
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.observation import Encoding, observe
from jaxroute.policies.choose import first_of_highest
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.policies.protocol import Policy, Stateless
from jaxroute.rollout import Lane, interval, start_lane
from jaxroute.train.state import Params
from jaxroute.types import ClusterParams, RouterView, Time, Workload

TAIL = 0.99
"""Quantile of the latencies that stands for the tail."""


class Outcome(NamedTuple):
    """What an episode cost; seconds, [...] float32 each.

    Attributes:
      e2e_mean: mean E2E latency.
      e2e_p99: its 99th percentile.
      ttft_p99: 99th percentile of the time to first token.
      makespan: from the first arrival to the last finish.
      complete: 1 where every request finished in a run that the simulator can represent.
    """

    e2e_mean: jax.Array
    e2e_p99: jax.Array
    ttft_p99: jax.Array
    makespan: jax.Array
    complete: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Greedy(Stateless):
    """The network as a policy: it takes the action with the highest logit. Its weights may be traced.

    Attributes:
      network: the scorer.
      encoding: of what it observes.
      weights: the scorer's.
      scales: of its features.
      name: what it is called.
    """

    network: Scorer
    encoding: Encoding
    weights: Params
    scales: FeatureScales
    name: str = "greedy"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        logits = self.network.apply(self.weights, observe(view, self.encoding, jnp), self.scales)
        return first_of_highest(logits)


def play(env: ClusterRouting, policy: Policy, params: EnvParams, index: jax.Array, key: jax.Array) -> Outcome:
    """One episode of every lane, side by side.

    Args:
      env: the environment.
      policy: what routes.
      params: [E] leaves.
      index: [E] int32, which workload of its bank each lane plays.
      key: typed key of the policy's choices.

    Returns:
      [E] leaves.
    """
    config = dataclasses.replace(env.config, records=True)
    workloads = jax.vmap(lambda own, one: jax.tree.map(lambda leaf: leaf[one], own.workloads))(params, index)
    clusters = params.cluster.replace(scrape_period=params.scrape_periods[:, 0])

    def begin(cluster: ClusterParams, workload: Workload, number: jax.Array) -> Lane:
        return start_lane(config, cluster, workload, policy.initial_state(env.instances), jax.random.fold_in(key, number))

    def ended(lane: Lane, count: jax.Array) -> jax.Array:
        done = jax.vmap(fleet.all_finished)(workloads, lane.cluster) | jax.vmap(fleet.is_void)(lane.cluster)
        return done | (count >= params.max_steps_in_episode)

    def body(carry: tuple[Lane, jax.Array]) -> tuple[Lane, jax.Array]:
        lane, count = carry
        return jax.vmap(partial(interval, config, policy))(clusters, workloads, lane)[0], count + 1

    lanes = jax.vmap(begin)(clusters, workloads, jnp.arange(index.shape[0], dtype=jnp.int32))
    lanes, _ = jax.lax.while_loop(lambda carry: ~jnp.all(ended(*carry)), body, (lanes, jnp.int32(0)))
    return jax.vmap(outcome_of)(clusters, workloads, lanes.cluster)


def outcome_of(params: ClusterParams, workload: Workload, cluster: ClusterState) -> Outcome:
    """What a run that has ended cost; [] leaves. Requests that did not finish count as finishing now."""
    rows = jnp.arange(workload.prompt_tokens.shape[0], dtype=jnp.int32)
    real = rows < workload.num_requests
    book = cluster.engines.ledger
    if book is None:
        raise ValueError("the run kept no records")
    sent = jnp.maximum(cluster.instance, 0) if cluster.instance is not None else rows

    def since_arrival(times: Time) -> jax.Array:
        step, offset = times.step[sent, rows], times.offset[sent, rows]
        known = (step >= 0) & (cluster.instance >= 0)
        end = Time(step=jnp.where(known, step, cluster.now), offset=jnp.where(known, offset, 0))
        return clock.seconds_between(workload.arrival, end, params.dt)

    e2e, ttft = since_arrival(book.requests.last), since_arrival(book.requests.first)
    count = workload.num_requests.astype(jnp.float32)
    complete = fleet.all_finished(workload, cluster) & ~fleet.is_void(cluster)
    return Outcome(
        e2e_mean=jnp.sum(jnp.where(real, e2e, 0)) / count,
        e2e_p99=_quantile(jnp.where(real, e2e, -jnp.inf), count),
        ttft_p99=_quantile(jnp.where(real, ttft, -jnp.inf), count),
        makespan=jnp.max(jnp.where(real, e2e + _seconds(workload.arrival, params), 0)),
        complete=complete.astype(jnp.float32),
    )


def _quantile(values: jax.Array, count: jax.Array) -> jax.Array:
    """The `TAIL` quantile of the largest `count` values."""
    ordered = jnp.sort(values)
    place = ordered.shape[0] - 1 - jnp.floor((1 - TAIL) * (count - 1)).astype(jnp.int32)
    return ordered[place]


def _seconds(time: Time, params: ClusterParams) -> jax.Array:
    return time.step.astype(jnp.float32) * params.dt.seconds + time.offset
