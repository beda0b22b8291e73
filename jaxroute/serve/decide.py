"""The brain of the proxy: the router queue, the view, and what decides where and when its head goes; no sockets.

Axis letters: I servers, C servers that may be chosen.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import time
from collections.abc import Sequence

from jaxroute.policies.policy_file import PolicyFile
from jaxroute.router_order import split_order
from jaxroute.serve.brain_settings import BrainSettings, load_policy, order_of
from jaxroute.serve.fleet_view import rows
from jaxroute.serve.heuristics import FALLBACK, HEURISTICS
from jaxroute.serve.policy_choice import NO_POLICY, PolicyJudge
from jaxroute.serve.request_end import RequestEnd
from jaxroute.serve.router_queue import Order, RouterQueue, Waiting
from jaxroute.serve.tracker import Tracker
from jaxroute.serve.types import (
    HOLD,
    BackendStatus,
    Decision,
    Incoming,
    Metrics,
    Placement,
    RefusalReason,
    Refused,
    Server,
)

TICK_S = 0.02
"""Seconds between two decisions on a request that is held, where no policy says otherwise."""

POLICY = "policy"
"""Who decided, where the trained policy did."""

LONGEST_RETRY_S = 60.0
"""Most seconds that a refused client is told to wait."""


@dataclasses.dataclass(slots=True)
class _Placed:
    placement: Placement
    first_token_s: float | None = None


class Brain:
    """Decides; one thread, no waiting, no clock of its own: every call is told the time (`now`, seconds, monotonic).

    Servers that are closed, at their limit, or excluded for the head are not shown to whatever decides. A policy serves
    fleets of any size, and none of those trained so far has seen a full server.

    Attributes:
      settings: how requests are routed.
      tracker: what is known of the servers.
      tick_s: seconds between two decisions while a request is held.
      counts: what has happened so far: `dispatched`, `held` (decisions to wait), `at-limit` (no server could take the
        head), `fallback REASON`, `shadow-fallback REASON`, `shadow-agrees`, `shadow-differs`, `refused REASON`,
        `ended OUTCOME`.
    """

    def __init__(
        self, servers: Sequence[Server], settings: BrainSettings | None = None, *, start_s: float = 0.0
    ) -> None:
        """Reads the policy.

        Args:
          servers: the fleet.
          settings: by default the shipped policy decides.
          start_s: the time now.

        Raises:
          InputError: no such policy, a damaged one, or two servers of one name.
        """
        self.settings = settings = settings or BrainSettings()
        self.counts: collections.Counter[str] = collections.Counter()
        base, _ = split_order(settings.policy)
        policy = None if base in HEURISTICS else load_policy(base)
        limits = {"stale_after_s": settings.stale_after_s, "range_limit": settings.range_limit}
        self._judge = None if policy is None else PolicyJudge(policy, **limits)
        self._heuristic = split_order(settings.shadow)[0] if settings.shadow else base if policy is None else FALLBACK
        self._queue = RouterQueue(order_of(settings, policy))
        self.tick_s = policy.dt if policy else TICK_S
        edges = policy.bucket_edges if policy else ()
        self.tracker = Tracker(
            servers, dt=self.tick_s, bucket_edges=edges, start_s=start_s, router=0 if settings.shared else None
        )
        self._placed: dict[str, _Placed] = {}
        self._dispatch_times: collections.deque[float] = collections.deque(maxlen=32)

    @property
    def policy(self) -> PolicyFile | None:
        """The trained policy, if there is one."""
        return self._judge.policy if self._judge else None

    @property
    def order(self) -> Order:
        """Of the router queue."""
        return self._queue.order

    @property
    def queue_length(self) -> int:
        """Requests that wait at the router."""
        return len(self._queue)

    def arrive(self, request: Incoming, now: float, exclude: frozenset[str] = frozenset()) -> None:
        """A request joins the router queue; `decide` places it.

        Raises:
          Refused: too many wait, or no open server is left for it.
          ValueError: its id is waiting or in flight already.
        """
        if request.id in self._queue or request.id in self._placed:
            raise ValueError(f"request {request.id}: is waiting or in flight already")
        if not self._has_server(exclude):
            raise self._refused("no-backend", now)
        if len(self._queue) >= self.settings.max_queue:
            raise self._refused("queue-full", now)
        if request.arrival_s is None:
            request = dataclasses.replace(request, arrival_s=now)
        self._queue.join(Waiting(request, exclude, now))

    def withdraw(self, id: str) -> None:
        """A request leaves the router queue without being placed."""
        self._queue.leave(id)

    def decide(self, now: float, *, most: int | None = None) -> list[tuple[str, Placement | Refused]]:
        """Places the requests whose turn it is, one after the other, until one is to be held or none is left.

        Args:
          now: seconds.
          most: requests after which to stop.

        Returns:
          Ids of requests that have left the queue, each with its placement, or why it has none.
        """
        outcomes: list[tuple[str, Placement | Refused]] = []
        while (first := self._queue.longest_waiting()) and now - first.since >= self.settings.max_wait_s:
            self._queue.leave(first.request.id)
            outcomes.append((first.request.id, self._refused("wait-limit", now)))
        while (most is None or len(outcomes) < most) and (head := self._queue.head()):
            outcome = self._place(head, now) if self._has_server(head.exclude) else self._refused("no-backend", now)
            if outcome is None:
                break
            self._queue.leave(head.request.id)
            outcomes.append((head.request.id, outcome))
        return outcomes

    def put(self, request: Incoming, backend: str, now: float, decided_by: str) -> None:
        """A request is at a server that somebody else has chosen for it; it counts as dispatched there.

        Raises:
          KeyError: there is no such server.
          ValueError: its id is waiting or in flight already.
        """
        if request.id in self._queue or request.id in self._placed:
            raise ValueError(f"request {request.id}: is waiting or in flight already")
        self._dispatch(Placement(request, backend, now, Decision(decided_by, names=(backend,))))

    def first_token(self, id: str, now: float) -> None:
        """The first token of a request has been seen; it counts as one."""
        placed = self._placed.get(id)
        if placed is not None and placed.first_token_s is None:
            self.tokens(id, 1, now)

    def tokens(self, id: str, count: int, now: float) -> None:
        """`count` more tokens of a request have been seen."""
        placed = self._placed.get(id)
        if placed is None or count < 1:
            return
        if placed.first_token_s is None:
            placed.first_token_s = now
        self.tracker.tokens(id, count)

    def ended(self, id: str, now: float, outcome: str, output_tokens: int | None = None) -> RequestEnd | None:
        """A request is no longer in flight; None if it was not.

        Args:
          id: of the request.
          now: seconds.
          outcome: `finished`, or what went wrong.
          output_tokens: that it has had; None for those that were seen.
        """
        placed, flight = self._placed.pop(id, None), self.tracker.end(id)
        if placed is None or flight is None:
            return None
        self.counts[f"ended {outcome}"] += 1
        seen = flight.tokens if placed.first_token_s is not None else None
        return RequestEnd(
            placement=placed.placement,
            outcome=outcome,
            first_token_s=placed.first_token_s,
            end_s=now,
            output_tokens=seen if output_tokens is None else output_tokens,
        )

    def set_backends(self, servers: Sequence[Server]) -> None:
        """Changes the fleet; see `Tracker.set_servers`."""
        self.tracker.set_servers(servers)

    def set_open(self, name: str, is_open: bool) -> None:
        """Opens or closes a server."""
        self.tracker.set_open(name, is_open)

    def scraped(self, name: str, metrics: Metrics, now: float) -> None:
        """A server's metrics have been read."""
        self.tracker.scraped(name, metrics, now)

    def status(self, now: float) -> list[BackendStatus]:
        """Every server as it is now."""
        return [
            BackendStatus(
                name=load.server.name,
                is_open=load.is_open,
                in_flight=load.in_flight,
                in_flight_tokens=load.in_flight_tokens,
                outstanding_tokens=load.outstanding_tokens,
                kv_tokens=load.kv_tokens,
                signal_age_s=now - load.scraped_at,
            )
            for load in self.tracker.loads
        ]

    def _has_server(self, exclude: frozenset[str]) -> bool:
        return any(load.is_open and load.server.name not in exclude for load in self.tracker.loads)

    def _place(self, head: Waiting, now: float) -> Placement | None:
        """Where the head of the queue goes; None to hold it."""
        started = time.perf_counter()
        fleet, exclude = self.tracker.loads, head.exclude
        loads = [each for each in fleet if each.is_open and not each.is_at_limit and each.server.name not in exclude]
        if not loads:
            self.counts["at-limit"] += 1
            return None
        names = tuple([load.server.name for load in loads])
        choice = NO_POLICY
        if self._judge is not None:
            view = self.tracker.view(now, head.request, len(self._queue), exclude)
            choice = self._judge.choose(view if len(loads) == len(fleet) else rows(view, ~view.full))
        action = None if self.settings.shadow else choice.action
        if action == len(loads):
            self.counts["held"] += 1
            return None
        by_policy = action is not None
        if action is None:
            action = HEURISTICS[self._heuristic](loads, self.tracker.dispatched)
        decision = Decision(
            decided_by=POLICY if by_policy else self._heuristic,
            fallback=choice.fallback,
            shadow=_shadow(choice.action, names) if self.settings.shadow else None,
            names=names,
            router_features=choice.router_features,
            instance_features=choice.instance_features,
            scores=choice.scores,
            signal_age_s=now - min([load.scraped_at for load in loads]),
            decision_s=time.perf_counter() - started,
        )
        backend = names[action]
        placement = Placement(head.request, backend, now, decision)
        self._dispatch(placement)
        return placement

    def _dispatch(self, placement: Placement) -> None:
        request, decision = placement.request, placement.decision
        self.tracker.dispatch(request, placement.backend, placement.dispatch_s)
        self._placed[request.id] = _Placed(placement)
        self._dispatch_times.append(placement.dispatch_s)
        self.counts["dispatched"] += 1
        if decision.fallback is not None:
            self.counts[f"{'shadow-fallback' if self.settings.shadow else 'fallback'} {decision.fallback}"] += 1
        if decision.shadow is not None:
            self.counts["shadow-agrees" if decision.shadow == placement.backend else "shadow-differs"] += 1

    def _refused(self, reason: RefusalReason, now: float) -> Refused:
        self.counts[f"refused {reason}"] += 1
        return Refused(reason, 1.0 if reason == "no-backend" else self._drain_s(now))

    def _drain_s(self, now: float) -> float:
        """Seconds after which those that wait now are placed, at the rate of the latest dispatches."""
        times = self._dispatch_times
        if len(times) < 2:
            return 1.0
        waits = len(self._queue) * (now - times[0]) / len(times)
        return float(min(max(math.ceil(waits), 1), LONGEST_RETRY_S))


def _shadow(action: int | None, names: Sequence[str]) -> str | None:
    if action is None:
        return None
    return HOLD if action == len(names) else names[action]


__all__ = ["POLICY", "TICK_S", "Brain", "BrainSettings"]
