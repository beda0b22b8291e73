"""The router's view of real servers, from what a proxy sees: dispatches, streamed tokens, ends, scraped metrics.

Axis letters: I servers, B length buckets.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from jaxroute.errors import InputError
from jaxroute.estimate import decode_step_s
from jaxroute.serve.fleet_view import FleetView, profile_arrays
from jaxroute.serve.server_load import Flight, ServerLoad
from jaxroute.serve.types import Incoming, Metrics, Server

if TYPE_CHECKING:
    from jaxroute.types import StepCoefficients

_NOTHING = Incoming(id="", prompt_tokens=0, predicted_tokens=0)
"""In place of the head of an empty queue."""


class Tracker:
    """Builds a `FleetView`: every event costs O(1), every view O(I).

    Requests that do not stream cost a view O(1) each: their first token is estimated to be out once all prompts ahead
    of it and its own are prefilled, and from then on they gain a token in every decode step of the server's profile at
    its load, up to the most tokens of their predicted bucket.

    All times are seconds on one monotonic clock.

    Attributes:
      dt: router interval, seconds.
      bucket_edges: lower edges of the B length buckets by which requests are counted; empty for no counts.
      dispatched: requests dispatched so far.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        dt: float = 0.02,
        bucket_edges: Sequence[int] = (),
        start_s: float = 0.0,
        router: int | None = None,
    ) -> None:
        """Starts with nothing in flight.

        Args:
          servers: the fleet.
          dt, bucket_edges: see above.
          start_s: time at which router intervals are counted from 0.
          router: see `FleetView`.
        """
        self.dt, self.bucket_edges, self._router = dt, tuple(bucket_edges), router
        self.dispatched = 0
        self._start_s = start_s
        self._flights: dict[str, Flight] = {}
        self._unseen: set[Flight] = set()
        self._loads: list[ServerLoad] = []
        self._by_name: dict[str, ServerLoad] = {}
        self.set_servers(servers)

    @property
    def loads(self) -> Sequence[ServerLoad]:
        """The servers' totals, [I]."""
        return self._loads

    def set_servers(self, servers: Sequence[Server]) -> None:
        """Changes the fleet; a server of the same name keeps its requests, metrics and state, a new one is open.

        Raises:
          InputError: two servers of one name.
        """
        names = [server.name for server in servers]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise InputError(f"backend {repeated}: is given twice; give each backend once")
        self._loads = [
            self._by_name.get(server.name) or ServerLoad(server, len(self.bucket_edges)) for server in servers
        ]
        for load, server in zip(self._loads, servers, strict=True):
            load.server = server
        self._by_name = dict(zip(names, self._loads, strict=True))
        self._profile = profile_arrays([server.profile for server in servers])

    def set_open(self, name: str, is_open: bool) -> None:
        """Opens or closes a server; one that is gone is none."""
        if name in self._by_name:
            self._by_name[name].is_open = is_open

    def scraped(self, name: str, metrics: Metrics, now: float) -> None:
        """A server's metrics have been read."""
        if name in self._by_name:
            load = self._by_name[name]
            load.metrics, load.scraped_at = metrics, now

    def is_in_flight(self, id: str) -> bool:
        """Whether the request has been dispatched and has not ended."""
        return id in self._flights

    def dispatch(self, request: Incoming, name: str, now: float) -> None:
        """A request has been sent to a server."""
        load = self._by_name[name]
        flight = Flight(request, load, self._bucket(request))
        load.add(flight)
        self.dispatched += 1
        self._flights[request.id] = flight
        if not request.streamed:
            profile, ahead = load.server.profile, load.awaiting_prompt_tokens - request.prompt_tokens
            own_ms = profile.step_ms([(max(request.prompt_tokens, 1), 0)], [])
            flight.first_at = now + (own_ms + profile.coefficients_ms["g"] * ahead) / 1e3
            self._unseen.add(flight)

    def tokens(self, id: str, count: int) -> int:
        """`count` more output tokens of a request have been seen; its tokens so far, 0 if it is not in flight."""
        flight = self._flights.get(id)
        if flight is None:
            return 0
        self._unseen.discard(flight)
        if count > 0:
            flight.load.add_tokens(flight, count)
        return flight.tokens

    def end(self, id: str) -> Flight | None:
        """A request has ended, in whatever way; None if it is not in flight."""
        flight = self._flights.pop(id, None)
        if flight is not None:
            self._unseen.discard(flight)
            flight.load.remove(flight)
        return flight

    def view(
        self, now: float, head: Incoming | None = None, queue_length: int = 0, exclude: Collection[str] = ()
    ) -> FleetView:
        """The view at a time.

        Args:
          now: seconds.
          head: first request of the router queue; its `arrival_s` counts, None being now.
          queue_length: requests in the router queue.
          exclude: names of servers that must not get the head.
        """
        loads = self._loads
        if self._unseen:
            self._estimate(now)
        table = np.array(
            [
                (
                    load.in_flight,
                    load.in_flight_tokens,
                    load.awaiting_first,
                    load.awaiting_prompt_tokens,
                    load.predicted_tokens_left,
                    load.kv_tokens,
                    load.metrics.running,
                    load.metrics.waiting,
                    load.least_predicted_left,
                )
                for load in loads
            ],
            np.float32,
        ).reshape(-1, 9)
        full = [not load.is_open or load.is_at_limit or load.server.name in exclude for load in loads]
        ages = [now - load.scraped_at for load in loads]
        counted = bool(self.bucket_edges)
        request = _NOTHING if head is None else head
        return FleetView(
            now=int((now - self._start_s) / self.dt + 1e-6),
            dt=self.dt,
            queue_length=queue_length,
            head_prompt_tokens=request.prompt_tokens,
            head_predicted_bucket=0 if head is None else self._bucket(request),
            head_predicted_tokens=request.predicted_tokens,
            head_predicted_upper=request.predicted_upper,
            head_wait=0.0 if request.arrival_s is None else now - request.arrival_s,
            dispatched=self.dispatched,
            in_flight=table[:, 0],
            in_flight_tokens=table[:, 1],
            awaiting_first=table[:, 2],
            awaiting_prompt_tokens=table[:, 3],
            predicted_tokens_left=table[:, 4],
            full=np.array(full, bool),
            kv_tokens=table[:, 5],
            profile=self._profile,
            scraped_running=table[:, 6],
            scraped_waiting=table[:, 7],
            scraped_kv_usage=np.array([load.metrics.kv_usage for load in loads], np.float32),
            scraped_age=max(
                (age for age, no in zip(ages, full, strict=True) if not no and age < math.inf), default=0.0
            ),
            least_predicted_left=table[:, 8],
            awaiting_by_bucket=np.array([load.awaiting for load in loads], np.int64) if counted else None,
            streaming_by_bucket=np.array([load.streaming for load in loads], np.int64) if counted else None,
            signal_age_s=np.array(ages, np.float64),
            router=self._router,
        )

    def _bucket(self, request: Incoming) -> int:
        """Where the predicted tokens fall by the tracker's own edges, as in training, whatever the predictor's are."""
        if not self.bucket_edges:
            return request.predicted_bucket
        return max(bisect.bisect_right(self.bucket_edges, request.predicted_tokens) - 1, 0)

    def _estimate(self, now: float) -> None:
        """Brings requests whose tokens are not seen forward to `now`."""
        seqs = np.array([load.in_flight for load in self._loads], np.float32)
        context = np.array([load.in_flight_tokens for load in self._loads], np.float32)
        step_s = decode_step_s(cast("StepCoefficients", self._profile.step), seqs, context, np).tolist()
        seconds = {id(load): max(each, 1e-6) for load, each in zip(self._loads, step_s, strict=True)}
        for flight in self._unseen:
            if now < flight.first_at or id(flight.load) not in seconds:
                continue
            if not flight.tokens:
                flight.progress, flight.progress_at = 1.0, flight.first_at
            flight.progress += (now - flight.progress_at) / seconds[id(flight.load)]
            flight.progress_at = now
            most = max(flight.request.predicted_upper, flight.request.predicted_tokens, 1)
            gained = min(int(flight.progress), most) - flight.tokens
            if gained > 0:
                flight.load.add_tokens(flight, gained)
