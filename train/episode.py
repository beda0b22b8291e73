"""Whole episodes, from the first request to the last finish, and their costs: what validation and evolution judge."""

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
from jaxroute.policies.in_turn import in_turn
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.policies.protocol import Policy, Stateless
from jaxroute.rollout import Lane, interval, start_lane
from jaxroute.train.rollout import action_logits
from jaxroute.train.state import Params
from jaxroute.types import ClusterParams, RouterView, Time, Workload

TAIL = 0.99
"""Quantile of the latencies that stands for the tail."""


class Outcome(NamedTuple):
    """What an episode cost; seconds, [...] float32 each.

    Attributes:
      e2e_mean: mean E2E latency, of requests counted in whole router intervals.
      late_mean: what the latencies exceed `InstanceParams.late_after` by, over all requests.
      makespan: from the first interval to the last finish.
      complete: 1 where every request finished in a run that the simulator can represent.
      e2e_p99: 99th percentile of the E2E latencies; 0 without records.
      ttft_p99: of the times to the first token; 0 without records.
    """

    e2e_mean: jax.Array
    late_mean: jax.Array
    makespan: jax.Array
    complete: jax.Array
    e2e_p99: jax.Array
    ttft_p99: jax.Array


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
        observed = observe(view, self.encoding, jnp)
        return first_of_highest(action_logits(self.network, self.weights, observed, self.scales))


def play(
    env: ClusterRouting, policy: Policy, params: EnvParams, index: jax.Array, key: jax.Array, *, records: bool = False
) -> Outcome:
    """One episode of every lane, side by side.

    Args:
      env: the environment.
      policy: what routes.
      params: [E] leaves.
      index: [E] int32, which workload of its bank each lane plays.
      key: typed key of the policy's choices.
      records: whether to keep what the percentiles come from; it takes twice the time.

    Returns:
      [E] leaves.
    """
    config = dataclasses.replace(env.config, records=records)
    policy = in_turn(policy, config.routers)
    workloads = jax.vmap(lambda own, one: jax.tree.map(lambda leaf: leaf[one], own.workloads))(params, index)
    clusters = params.cluster.replace(scrape_period=params.scrape_periods[:, 0])

    def begin(cluster: ClusterParams, workload: Workload, number: jax.Array) -> Lane:
        return start_lane(
            config, cluster, workload, policy.initial_state(env.instances), jax.random.fold_in(key, number)
        )

    def ended(lane: Lane, count: jax.Array) -> jax.Array:
        done = jax.vmap(fleet.all_finished)(workloads, lane.cluster) | jax.vmap(fleet.is_void)(lane.cluster)
        return done | (count >= params.max_steps_in_episode)

    def body(carry: tuple[Lane, jax.Array]) -> tuple[Lane, jax.Array]:
        lane, count = carry
        after = jax.vmap(partial(interval, config, policy))(clusters, workloads, lane)[0]
        # A lane that has ended keeps its time.
        now = jnp.where(ended(lane, count), lane.cluster.now, after.cluster.now)
        return after.replace(cluster=after.cluster.replace(now=now)), count + 1

    lanes = jax.vmap(begin)(clusters, workloads, jnp.arange(index.shape[0], dtype=jnp.int32))
    lanes, _ = jax.lax.while_loop(lambda carry: ~jnp.all(ended(*carry)), body, (lanes, jnp.int32(0)))
    return jax.vmap(outcome_of)(clusters, workloads, lanes.cluster)


def outcome_of(params: ClusterParams, workload: Workload, cluster: ClusterState) -> Outcome:
    """What a run that has ended cost; [] leaves. Requests that did not finish have no share in it."""
    count = workload.num_requests.astype(jnp.float32)
    engines = cluster.engines

    def mean_s(steps: jax.Array) -> jax.Array:
        return jnp.sum(steps.astype(jnp.float32)) * params.dt.seconds / count

    e2e_p99, ttft_p99 = (
        (jnp.float32(0), jnp.float32(0)) if engines.ledger is None else _tails(params, workload, cluster)
    )
    return Outcome(
        e2e_mean=mean_s(engines.latency_steps),
        late_mean=mean_s(engines.late_steps),
        makespan=cluster.now.astype(jnp.float32) * params.dt.seconds,
        complete=(fleet.all_finished(workload, cluster) & ~fleet.is_void(cluster)).astype(jnp.float32),
        e2e_p99=e2e_p99,
        ttft_p99=ttft_p99,
    )


def _tails(params: ClusterParams, workload: Workload, cluster: ClusterState) -> tuple[jax.Array, jax.Array]:
    """99th percentiles of E2E latency and of the time to the first token, [] float32 seconds each."""
    rows = jnp.arange(workload.prompt_tokens.shape[0], dtype=jnp.int32)
    sent, book = cluster.instance, cluster.engines.ledger
    if sent is None or book is None:
        raise ValueError("the run kept no records")

    def of(times: Time) -> jax.Array:
        at = jax.tree.map(lambda leaf: leaf[jnp.maximum(sent, 0), rows], times)
        seconds = clock.seconds_between(workload.arrival, at, params.dt)
        ordered = jnp.sort(jnp.where((rows < workload.num_requests) & (sent >= 0), seconds, -jnp.inf))
        above = (1 - TAIL) * (workload.num_requests - 1).astype(jnp.float32)
        return ordered[ordered.shape[0] - 1 - jnp.floor(above).astype(jnp.int32)]

    return of(book.requests.last), of(book.requests.first)
