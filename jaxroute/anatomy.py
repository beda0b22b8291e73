"""Why a trained policy decided as it did: what it saw, how it scored, and what its other choices would have led to.

Axis letters: T router intervals, I instances, F features of an instance, G features of the router, C choices.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxroute import metrics
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.router_queue import head_of
from jaxroute.cluster.view import router_view
from jaxroute.devices import lane_mesh
from jaxroute.observation import Observed, feature_names, observe
from jaxroute.policies.choose import first_of_highest
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.progress import check_progress, interval_limit
from jaxroute.results import RunResult
from jaxroute.rollout import Lane, interval, run_to_end, stack_lanes, start_lane
from jaxroute.simulate import SEGMENT, Fleet, records_of, results_of
from jaxroute.types import EMPTY, ClusterParams, RouterView, Workload
from jaxroute.workload.device import stack, to_device
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.table import RequestTable

Choice = tuple[int, int]
"""An interval, and the action that is taken in it whatever the policy says."""


@dataclasses.dataclass(frozen=True)
class Hold:
    """Intervals in a row in which one request was the first of the router's queue and was not sent.

    Attributes:
      request: its row in the table.
      first: the first of the intervals.
      last: the last of them.
      sent_to: the instance that it was sent to in the next one; None where another request came before it.
    """

    request: int
    first: int
    last: int
    sent_to: int | None


@dataclasses.dataclass(frozen=True)
class Watched:
    """One run of a trained policy, and all that it saw.

    Attributes:
      policy: the policy.
      result: what happened to the requests.
      head: [T] int, row of the first request of the router's queue; `EMPTY` where there was none.
      queue_length: [T] int, requests at the router.
      observed: what the policy saw, NumPy arrays with a leading [T].
      logits: [T, I + 1] its scores, the last one hold.
      action: [T] int, what it did: an instance, or I = hold.
    """

    policy: LearnedPolicy
    result: RunResult
    head: np.ndarray
    queue_length: np.ndarray
    observed: Observed
    logits: np.ndarray
    action: np.ndarray

    @property
    def instances(self) -> int:
        """I."""
        return self.result.instances

    @property
    def sent(self) -> np.ndarray:
        """Intervals in which a request was sent."""
        return np.flatnonzero((self.head != EMPTY) & (self.action < self.instances))

    def seconds(self, at: int) -> float:
        """When an interval starts."""
        return at * self.result.dt_s

    def seen(self, at: int) -> Observed:
        """What the policy saw in an interval."""
        return Observed(*(part[at] for part in self.observed))

    def holds(self) -> list[Hold]:
        """Every hold of the run, in order."""
        held = np.where(self.action == self.instances, self.head, EMPTY)
        borders = np.flatnonzero(np.diff(held, prepend=EMPTY, append=EMPTY))
        found = []
        for first, after in itertools.pairwise(borders.tolist()):
            if held[first] != EMPTY:
                follows = after < len(self.head) and self.head[after] == held[first]
                sent_to = int(self.action[after]) if follows else None
                found.append(Hold(int(held[first]), first, after - 1, sent_to))
        return found


@dataclasses.dataclass(frozen=True)
class Reasons:
    """A decision taken apart: the network is a linear path, and hidden layers beside it.

    Attributes:
      score: [I] of each instance.
      score_terms: [I, F] what each feature adds to it on the linear path.
      score_hidden: [I] what the hidden layers add.
      hold: how much more holding scores than the best instance that can take the request; below 0 it is sent. NaN
        where holding was no choice.
      hold_terms: what adds up to that, by name; the largest first.
    """

    score: np.ndarray
    score_terms: np.ndarray
    score_hidden: np.ndarray
    hold: float
    hold_terms: dict[str, float]


class _Seen(struct.PyTreeNode):
    """What `watch` keeps of each interval."""

    head: jax.Array
    queue_length: jax.Array
    observed: Observed
    logits: jax.Array
    action: jax.Array


def watch(fleet: Fleet, table: RequestTable, prediction: Prediction, policy: LearnedPolicy) -> Watched:
    """Runs a trained policy to the end of the last request, and keeps what it saw in every interval.

    Args:
      fleet: the servers, with the order of the router's queue that the policy was trained with (`Candidate.fleet`).
      table: the requests.
      prediction: what the router is told of their output lengths.
      policy: the policy.

    Raises:
      InputError: a request that cannot run, or a run that the simulator cannot represent.
    """
    fleet.check(table)
    config, params = fleet.config(len(table), records=True), fleet.params()
    workload = _workload(fleet, table, prediction)
    lane = start_lane(config, params, workload, policy.initial_state(len(fleet.profiles)), jax.random.key(0))
    parts: list[_Seen] = []
    finished = 0
    while finished < len(table):
        lane, seen = _segment(config, policy, params, workload, lane, length=SEGMENT)
        check_progress(jax.tree.map(lambda leaf: leaf[None], lane.cluster), [policy.name], table, config, fleet.dt)
        parts.append(jax.device_get(seen))
        finished = int(np.asarray(lane.cluster.engines.finished).sum())
    whole = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    # The idle intervals after the last dispatch say nothing.
    used = int(np.flatnonzero(whole.head != EMPTY)[-1]) + 1
    whole = jax.tree.map(lambda leaf: leaf[:used], whole)
    records = records_of(jax.device_get(lane.cluster), fleet.dt)
    result = RunResult(policy.name, table, records, fleet.frontend_s, fleet.dt)
    return Watched(policy, result, whole.head, whole.queue_length, whole.observed, whole.logits, whole.action)


@partial(jax.jit, static_argnames=("config", "policy", "length"))
def _segment(
    config: ClusterConfig, policy: LearnedPolicy, params: ClusterParams, workload: Workload, lane: Lane, *, length: int
) -> tuple[Lane, _Seen]:
    def one(lane: Lane, _: None) -> tuple[Lane, _Seen]:
        view = router_view(config, params, workload, lane.cluster)
        observed = observe(view, policy.file.observation, jnp)
        logits = policy.logits(observed)
        head = jnp.where(view.queue_length > 0, head_of(workload, lane.cluster), EMPTY)
        seen = _Seen(head, view.queue_length, observed, logits, first_of_highest(logits))
        return interval(config, policy, params, workload, lane)[0], seen

    return jax.lax.scan(one, lane, None, length=length)


def reasons(policy: PolicyFile, observed: Observed, logits: np.ndarray) -> Reasons:
    """Takes one decision apart.

    Args:
      policy: whose decision it was.
      observed: what it saw, one observation.
      logits: [I + 1] its scores.
    """
    weights, allowed = policy.weights, observed.mask[:-1]
    router_names, names = feature_names(policy.observation, len(policy.bucket_edges))
    score_terms = observed.instances * weights["score_linear/kernel"][:, 0]
    # The least finite float32 stands for an action that is not allowed.
    score = np.where(allowed, logits[:-1], np.nan)
    masked = logits[-1] == np.finfo(np.float32).min or not allowed.any()
    hold = np.nan if masked else float(logits[-1] - np.nanmax(score))
    emptiest = np.concatenate([observed.instances.min(axis=0), observed.router])
    linear = emptiest * weights["hold_linear/kernel"][:, 0]
    labels = [*(f"least of: {name}" for name in names), *router_names]
    terms = {label: float(value) for label, value in zip(labels, linear, strict=True) if value != 0}
    terms["constant"] = float(weights["hold_linear/bias"][0])
    terms["hidden layers"] = hold - sum(terms.values())
    return Reasons(
        score=score,
        score_terms=score_terms,
        score_hidden=score - score_terms.sum(axis=1),
        hold=hold,
        hold_terms=dict(sorted(terms.items(), key=lambda item: -abs(item[1]))),
    )


@dataclasses.dataclass(frozen=True)
class _Forced:
    """A policy that is overruled in one interval, which its state holds beside the action: runs share one program."""

    inner: Policy
    name: str

    def initial_state(self, instances: int) -> PolicyState:
        """No interval is overruled."""
        return jnp.int32(EMPTY), jnp.int32(0), self.inner.initial_state(instances)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        at, forced, own = state
        action, own = self.inner.act(own, view, key)
        return jnp.where(view.now == at, forced, action), (at, forced, own)


def what_if(
    fleet: Fleet, table: RequestTable, prediction: Prediction, policy: Policy, choices: Sequence[Choice]
) -> list[RunResult]:
    """Runs the same requests again for each choice: up to its interval as before, and after it as the policy decides.

    Args:
      fleet, table, prediction, policy: as for `watch`.
      choices: C of them.

    Returns:
      C runs, without a timeline.

    Raises:
      InputError: a request that cannot run, or a run that the simulator cannot represent.
    """
    fleet.check(table)
    config, params = fleet.config(len(table), records=True), fleet.params()
    workload, forced = _workload(fleet, table, prediction), _Forced(policy, policy.name)
    state = forced.initial_state(len(fleet.profiles))
    lanes = stack_lanes(start_lane(config, params, workload, state, jax.random.key(0)), len(choices))
    at, action = (jnp.asarray(column, jnp.int32) for column in zip(*choices, strict=True))
    lanes = lanes.replace(policy=(at, action, lanes.policy[2]))
    limit = interval_limit([table], fleet.profiles, fleet.dt)
    workloads, mesh = stack([workload] * len(choices)), lane_mesh(1)
    ended, _ = run_to_end(config, forced, params, workloads, lanes, mesh=mesh, chunk=len(choices), most_intervals=limit)
    names = [policy.name] * len(choices)
    check_progress(ended.cluster, names, table, config, fleet.dt)
    return results_of(fleet, table, names, ended.cluster)


def latency_change_s(result: RunResult, watched: Watched, at: int, request: int) -> tuple[float, float]:
    """Seconds of end-to-end latency that another choice costs more: of one request, and of the others it meets.

    Args:
      result: of the other choice.
      watched: the run as it was.
      at: the interval of the choice.
      request: the one that it was about.

    Returns:
      The change of the request, and that of all others together that had arrived and not finished by then. Those that
      come later are left out: any change shakes up what happens to them, for better or worse.
    """
    reference, now_s = watched.result, watched.seconds(at)
    change = metrics.e2e_s(result) - metrics.e2e_s(reference)
    here = (reference.table.arrival_s <= now_s) & (reference.records.finish_s > now_s)
    here[request] = False
    return float(change[request]), float(change[here].sum())


def _workload(fleet: Fleet, table: RequestTable, prediction: Prediction) -> Workload:
    return to_device(table, prediction, dt=fleet.dt, ageing=fleet.ageing, spf_edges=fleet.spf_edges)
