"""What the router knows of one server: running totals over its requests in flight, kept up with every event."""

from __future__ import annotations

import dataclasses
import math

from jaxroute.serve.types import Incoming, Metrics, Server

NO_METRICS = Metrics(running=0, waiting=0, kv_usage=0.0)
"""In place of a reading, before the first one."""


@dataclasses.dataclass(slots=True, eq=False)
class Flight:
    """A request in flight.

    Attributes:
      request: the request.
      load: of the server that has it.
      bucket: predicted length bucket, by the tracker's count of them.
      tokens: output tokens seen so far, or estimated.
      first_at: when its first token is estimated to be out, if tokens are not seen, seconds.
      progress: estimated output tokens, likewise.
      progress_at: when `progress` was right, seconds.
    """

    request: Incoming
    load: ServerLoad
    bucket: int
    tokens: int = 0
    first_at: float = math.inf
    progress: float = 0.0
    progress_at: float = 0.0

    @property
    def predicted_left(self) -> int:
        """Predicted output tokens left, not below 0."""
        return max(self.request.predicted_tokens - self.tokens, 0)


class ServerLoad:
    """The totals of one server; every event costs O(1).

    Attributes:
      server: whose they are; a reload may change its profile.
      is_open: whether it may be chosen.
      in_flight, in_flight_tokens, awaiting_first, awaiting_prompt_tokens, predicted_tokens_left: as in `RouterView`.
      awaiting, streaming: requests without and with a first token by bucket, [B] each.
      metrics: the latest reading.
      scraped_at: when that was, seconds; minus infinity before the first one.
    """

    __slots__ = (
        "_least",
        "awaiting",
        "awaiting_first",
        "awaiting_prompt_tokens",
        "flights",
        "in_flight",
        "in_flight_tokens",
        "is_open",
        "metrics",
        "predicted_tokens_left",
        "scraped_at",
        "server",
        "streaming",
    )

    def __init__(self, server: Server, buckets: int) -> None:
        self.server = server
        self.is_open = True
        self.in_flight = self.in_flight_tokens = self.awaiting_first = self.awaiting_prompt_tokens = 0
        self.predicted_tokens_left = 0
        self.awaiting, self.streaming = [0] * buckets, [0] * buckets
        self.metrics, self.scraped_at = NO_METRICS, -math.inf
        self.flights: set[Flight] = set()
        # The fewest predicted tokens left of a streaming request, infinity without one; None where it must be sought.
        self._least: float | None = math.inf

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds, by the server's own word or its profile."""
        return self.metrics.kv_tokens or self.server.profile.kv_tokens

    @property
    def outstanding_tokens(self) -> int:
        """Prompt tokens without a first token, and predicted output tokens left."""
        return self.awaiting_prompt_tokens + self.predicted_tokens_left

    @property
    def is_at_limit(self) -> bool:
        """Whether it has as many requests as the router may send it."""
        return self.server.max_in_flight is not None and self.in_flight >= self.server.max_in_flight

    @property
    def least_predicted_left(self) -> int:
        """As in `RouterView`; O(requests here) where the one that had the fewest has ended, else O(1)."""
        if self._least is None:
            self._least = min((flight.predicted_left for flight in self.flights if flight.tokens), default=math.inf)
        return 0 if self._least == math.inf else int(self._least)

    def add(self, flight: Flight) -> None:
        """A request has been dispatched here."""
        request = flight.request
        self.flights.add(flight)
        self.in_flight += 1
        self.in_flight_tokens += request.prompt_tokens
        self.awaiting_first += 1
        self.awaiting_prompt_tokens += request.prompt_tokens
        self.predicted_tokens_left += request.predicted_tokens
        if self.awaiting:
            self.awaiting[flight.bucket] += 1

    def add_tokens(self, flight: Flight, count: int) -> None:
        """`count` more output tokens of a request here, its first one maybe among them."""
        left = flight.predicted_left
        if not flight.tokens:
            self._first_token(flight)
        flight.tokens += count
        self.in_flight_tokens += count
        now_left = flight.predicted_left
        self.predicted_tokens_left -= left - now_left
        if self._least is not None and now_left < self._least:
            self._least = now_left

    def remove(self, flight: Flight) -> None:
        """A request has ended, in whatever way."""
        self.flights.discard(flight)
        left = flight.predicted_left
        self.in_flight -= 1
        self.in_flight_tokens -= flight.request.prompt_tokens + flight.tokens
        self.predicted_tokens_left -= left
        if flight.tokens:
            if self.streaming:
                self.streaming[flight.bucket] -= 1
            if left == self._least:
                self._least = None
        else:
            self._leave_awaiting(flight)

    def _first_token(self, flight: Flight) -> None:
        self._leave_awaiting(flight)
        if self.streaming:
            self.streaming[flight.bucket] += 1

    def _leave_awaiting(self, flight: Flight) -> None:
        self.awaiting_first -= 1
        self.awaiting_prompt_tokens -= flight.request.prompt_tokens
        if self.awaiting:
            self.awaiting[flight.bucket] -= 1
