"""The router's own queue: whose turn it is, in the simulator's order, and who has waited too long."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Iterator

import numpy as np

from jaxroute.errors import InputError
from jaxroute.length_edges import are_edges
from jaxroute.router_order import DEFAULT_AGEING, shortness
from jaxroute.serve.types import Incoming

ORDERS = ("fcfs", "shortest-predicted")


@dataclasses.dataclass(frozen=True)
class Order:
    """Whose turn it is.

    Attributes:
      name: `fcfs`, or `shortest-predicted`.
      ageing: predicted tokens that a second of waiting is worth in the latter.
      spf_edges: to which it rounds predicted tokens down, ascending; without any they count as they are.
    """

    name: str = "fcfs"
    ageing: float = DEFAULT_AGEING
    spf_edges: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ORDERS:
            raise InputError(f"unknown order of the router queue {self.name!r}; known: {', '.join(ORDERS)}")
        if not (math.isfinite(self.ageing) and self.ageing >= 0):
            raise InputError(f"ageing is {self.ageing!r}, must be a finite number of tokens per second >= 0")
        if not are_edges(self.spf_edges):
            raise InputError(f"spf_edges is {list(self.spf_edges)}, must be numbers of tokens above 0 that ascend")


@dataclasses.dataclass(frozen=True, slots=True)
class Waiting:
    """A request in the queue.

    Attributes:
      request: the request; its `arrival_s` is set.
      exclude: names of servers that must not get it.
      since: when it joined the queue, seconds: later than its arrival if this is another try.
    """

    request: Incoming
    exclude: frozenset[str]
    since: float


class RouterQueue:
    """Requests that wait at the router; joining, leaving and the head cost O(log waiting).

    The order is the simulator's: `fcfs` by arrival, `shortest-predicted` by `shortness`; of equals the one that arrived
    first, then the one that joined first.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._waiting: dict[str, Waiting] = {}
        # Entries of requests that have left stay until they come to the front.
        self._heap: list[tuple[float, float, int, Waiting]] = []
        self._joined = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: str) -> bool:
        return id in self._waiting

    def __iter__(self) -> Iterator[Waiting]:
        """The requests as they joined."""
        return iter(self._waiting.values())

    def join(self, waiting: Waiting) -> None:
        """A request joins the queue; its id must not be in it."""
        request = waiting.request
        arrival_s = waiting.since if request.arrival_s is None else request.arrival_s
        self._waiting[request.id] = waiting
        self._joined += 1
        heapq.heappush(self._heap, (self._key(request, arrival_s), arrival_s, self._joined, waiting))

    def leave(self, id: str) -> Waiting | None:
        """A request leaves the queue, placed or not; None if it is not in it."""
        left = self._waiting.pop(id, None)
        if not self._waiting:
            self._heap.clear()
        elif len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [entry for entry in self._heap if self._waiting.get(entry[3].request.id) is entry[3]]
            heapq.heapify(self._heap)
        return left

    def head(self) -> Waiting | None:
        """The request whose turn it is."""
        heap = self._heap
        while heap:
            waiting = heap[0][3]
            if self._waiting.get(waiting.request.id) is waiting:
                return waiting
            heapq.heappop(heap)
        return None

    def longest_waiting(self) -> Waiting | None:
        """The request that joined first."""
        return next(iter(self._waiting.values()), None)

    def _key(self, request: Incoming, arrival_s: float) -> float:
        if self.order.name == "fcfs":
            return 0.0
        tokens = np.asarray([request.predicted_tokens])
        key = shortness(np.asarray([arrival_s]), tokens, ageing=self.order.ageing, edges=self.order.spf_edges)
        return float(key[0])
