"""The brain within an event loop: who asks for a place waits for it, and what happens to requests is passed on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from jaxroute.serve.types import BackendStatus, Incoming, Metrics, Placement, Refused, Server

if TYPE_CHECKING:
    from jaxroute.serve.decide import Brain
    from jaxroute.serve.decision_log import DecisionLog

MOST_AT_ONCE = 16
"""Decisions in a row after which the event loop gets its turn."""


class Dispatcher:
    """Places requests; to be used from one event loop, whose thread runs all of it.

    A decision is made when a request comes in, when one ends, when a backend opens, and at every tick while any wait;
    with an empty queue there is no tick. Events of requests that are not in flight (any more) change nothing.

    Attributes:
      brain: what decides.
      clock: seconds, monotonic; all times given to the dispatcher are by it.
    """

    def __init__(
        self, brain: Brain, clock: Callable[[], float] = time.monotonic, log: DecisionLog | None = None
    ) -> None:
        self.brain, self.clock = brain, clock
        self._log = log
        self._waiting: dict[str, asyncio.Future[Placement]] = {}
        self._timer: asyncio.Handle | None = None
        self._closed = False

    async def place(self, request: Incoming, exclude: frozenset[str] = frozenset()) -> Placement:
        """Waits for a backend; from its return on the request counts as dispatched there.

        Whoever gets a placement must end it, with `finished` or `failed`. A retry is `failed` and then `place` again,
        with the same request (`Placement.request`, which keeps its arrival) and the backend excluded. Cancelling takes
        the request out of the queue.

        Args:
          request: what is to be placed.
          exclude: names of backends that must not get it.

        Raises:
          Refused: too many wait, it waited too long, no open backend is left for it, or the router is shutting down.
          ValueError: its id is waiting or in flight already.
        """
        if self._closed:
            raise Refused("closing", 1.0)
        self.brain.arrive(request, self.clock(), exclude)
        future: asyncio.Future[Placement] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        self._decide()
        try:
            return await future
        except asyncio.CancelledError:
            self._waiting.pop(request.id, None)
            if future.cancelled():
                self.brain.withdraw(request.id)
            elif future.exception() is None:
                # Placed at the very moment in which the client went away.
                self.failed(request.id, "aborted")
            raise

    def put(self, request: Incoming, backend: str, decided_by: str) -> None:
        """A request is at a backend that somebody else has chosen; it is to be ended like one that was placed.

        Raises:
          KeyError: there is no such backend.
          ValueError: its id is waiting or in flight already.
        """
        self.brain.put(request, backend, self.clock(), decided_by)

    def first_token(self, id: str) -> None:
        """The first token of a request has been seen; it counts as one."""
        self.brain.first_token(id, self.clock())

    def tokens(self, id: str, count: int) -> None:
        """`count` further tokens of a request have been seen; the first ones, where `first_token` was not called."""
        self.brain.tokens(id, count, self.clock())

    def finished(self, id: str, output_tokens: int | None = None) -> None:
        """A request is complete.

        Args:
          id: of the request.
          output_tokens: that it has, if the server said; None for those that were seen.
        """
        self._end(id, "finished", output_tokens)

    def failed(self, id: str, outcome: str = "failed") -> None:
        """A request ends without being complete.

        Args:
          id: of the request.
          outcome: what the decision log calls it, such as `failed` or `aborted` (by the client).
        """
        self._end(id, outcome, None)

    def set_backends(self, servers: Sequence[Server]) -> None:
        """Changes the fleet; a server keeps what is known of it by its name, a new one is open.

        Requests in flight at a server that is gone go on.
        """
        self.brain.set_backends(servers)
        self._decide()

    def set_open(self, name: str, is_open: bool) -> None:
        """Opens or closes a backend: a closed one gets no request. Where it was the last, all that wait are refused."""
        self.brain.set_open(name, is_open)
        self._decide()

    def scraped(self, name: str, metrics: Metrics) -> None:
        """A backend's `/metrics` have been read just now."""
        self.brain.scraped(name, metrics, self.clock())

    @property
    def queue_length(self) -> int:
        """Requests that wait at the router."""
        return self.brain.queue_length

    def status(self) -> list[BackendStatus]:
        """Every backend as it is now."""
        return self.brain.status(self.clock())

    def close(self) -> None:
        """Refuses all that wait and whatever comes; requests in flight go on."""
        self._closed = True
        for id, future in self._waiting.items():
            self.brain.withdraw(id)
            if not future.done():
                future.set_exception(Refused("closing", 1.0))
        self._waiting.clear()
        self._stop_ticking()

    def _end(self, id: str, outcome: str, output_tokens: int | None) -> None:
        end = self.brain.ended(id, self.clock(), outcome, output_tokens)
        if end is not None:
            if self._log is not None:
                self._log.write(end)
            self._decide()

    def _decide(self) -> None:
        outcomes = self.brain.decide(self.clock(), most=MOST_AT_ONCE) if self.brain.queue_length else []
        for id, outcome in outcomes:
            future = self._waiting.pop(id, None)
            if future is None or future.done():
                # Cancelled, but not yet aware of it.
                if isinstance(outcome, Placement):
                    self._end(id, "aborted", None)
            elif isinstance(outcome, Refused):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if not self.brain.queue_length:
            self._stop_ticking()
        elif len(outcomes) >= MOST_AT_ONCE:
            self._stop_ticking()
            self._timer = asyncio.get_running_loop().call_soon(self._tick)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.brain.tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._decide()

    def _stop_ticking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
