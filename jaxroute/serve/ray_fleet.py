"""The core behind a Ray Serve router: replicas in the place of servers, what Ray says of a call in the place of tokens.

Nothing of Ray is in here. All of it runs in the event loop of one router.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from jaxroute.errors import InputError, first_line
from jaxroute.predictor.service import PredictionService
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.config import BackendConfig, Watching
from jaxroute.serve.decide import Brain
from jaxroute.serve.decision_log import DecisionLog
from jaxroute.serve.dispatcher import Dispatcher
from jaxroute.serve.lengths import Lengths
from jaxroute.serve.openai_body import Asked, BodyError, read_fields
from jaxroute.serve.ray_options import RayOptions
from jaxroute.serve.ray_report import Report, read_report
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Refused
from jaxroute.serve.visits import Visit, Visits

LOG = logging.getLogger(__name__)

WATCHING = Watching(breaker_failures=3, breaker_s=5.0)
"""Ray itself looks after the replicas; one that cannot be reached three times in a row is left alone for a while."""

Outcome = Literal["finished", "error", "aborted", "replica-died"]
"""Of a call: it is over; it is over by an exception that Ray tells of; the caller gave up; the replica is gone."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """A replica as Ray's router has it.

    Attributes:
      name: unique.
      max_in_flight: calls that it takes at once.
      stats: its routing stats.
    """

    name: str
    max_in_flight: int
    stats: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(eq=False)
class Call:
    """A call while it is here.

    Attributes:
      visit: what is known of it.
      expiry: ends it where Ray says nothing.
      backend: where it was placed.
      attempt: what tells this placement from that of another try.
      taken: whether the replica has accepted it.
      not_by: names of replicas that did not take it.
    """

    visit: Visit
    expiry: asyncio.TimerHandle
    backend: Backend | None = None
    attempt: object = None
    taken: bool = False
    not_by: set[str] = dataclasses.field(default_factory=set)


class Fleet:
    """The replicas of one deployment as one router sees them.

    Attributes:
      dispatcher, backends, telemetry, visits: as in `Core`.
    """

    def __init__(
        self, options: RayOptions, *, may_reject: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Loads everything; there are no replicas yet.

        Args:
          options: how to route.
          may_reject: whether replicas say that they have taken a call.
          clock: seconds, monotonic.

        Raises:
          InputError: a policy, profile, predictor or reader that is not there.
        """
        self._options, self._may_reject = options, may_reject
        self._read, self._profile = options.reader(), load_profile(options.profile)
        self.telemetry = Telemetry()
        path = options.log_path(self)
        self._log = None if path is None else DecisionLog(path)
        self.dispatcher = Dispatcher(Brain([], options.settings(), start_s=clock()), clock, self._log)
        service = None if options.predictor == "none" else PredictionService.load(options.predictor)
        self.backends = Backends(self.dispatcher, self.telemetry)
        self.telemetry.watch(self.dispatcher, self.backends, service)
        lengths = Lengths(service, self.telemetry)
        self.visits = Visits(self.dispatcher, self.backends, lengths, self.telemetry, trust_predictions=True)
        self._service = service
        self._profiles: dict[str, StepProfile] = {}
        self._replicas: list[tuple[str, int, str | None]] = []
        self._reports: dict[str, Report] = {}
        self._calls: dict[str, Call] = {}
        self._late: collections.Counter[tuple[str, str]] = collections.Counter()
        self._warned: set[str] = set()

    def replace(self, replicas: Sequence[Replica]) -> None:
        """The replicas that there are now, and what they say; calls at those that are gone go on."""
        reports = {each.name: self._report(each) for each in replicas}
        shape = [
            (each.name, each.max_in_flight, None if (report := reports[each.name]) is None else report.profile)
            for each in replicas
        ]
        if shape != self._replicas:
            self._replicas = shape
            self.backends.replace([self._backend(*each) for each in shape])
        now, wall = self.dispatcher.clock(), time.time()
        for name, report in reports.items():
            if report is not None and report != self._reports.get(name):
                self.dispatcher.brain.scraped(name, report.metrics, now - max(0.0, wall - report.at_s))
        self._reports = {name: report for name, report in reports.items() if report is not None}

    async def choose(
        self,
        id: str,
        attempt: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        allowed: Collection[str] | None = None,
        *,
        is_heard_of: bool = True,
    ) -> str | None:
        """Waits for a replica; the call counts as sent there from now on.

        Asking again for a call takes it back from where it was placed, whose replica is left out this time.

        Args:
          id: of the call.
          attempt: another object for each time that Ray sends it.
          args, kwargs: its arguments.
          allowed: names of the replicas that may get it; None for all.
          is_heard_of: whether Ray will tell its end; if not, that is estimated.

        Returns:
          The replica's name; None where there is none for it now.
        """
        call = self._calls.get(id) or await self._begin(id, args, kwargs or {})
        if call.backend is not None:
            if call.attempt is not attempt:
                # It was sent, so its end is still to come, and must not be taken for that of the next try.
                self._late[id, call.backend.name] += 1
            self._not_taken(call)
        call.attempt, call.taken = attempt, False
        outside = () if allowed is None else (each.name for each in self.backends if each.name not in allowed)
        try:
            placement = await self.visits.place(call.visit, frozenset((*call.not_by, *outside)))
        except Refused:
            call.not_by.clear()
            return None
        except asyncio.CancelledError:
            self._leave(id)
            raise
        if (reason := placement.decision.fallback) is not None:
            self._warn(reason, "a heuristic decides in the policy's place: %s")
        call.backend = self.backends[placement.backend]
        self.visits.sent(call.visit, call.backend)
        if not is_heard_of:
            self.taken(id)
            call.expiry.cancel()
            ending = functools.partial(self.ended, id, call.backend.name, "finished")
            call.expiry = asyncio.get_running_loop().call_later(self._seconds(call), ending)
        return call.backend.name

    def with_room(self) -> set[str]:
        """Names of the replicas that could take another call."""
        loads = self.dispatcher.brain.tracker.loads
        return {load.server.name for load in loads if load.is_open and not load.is_at_limit}

    def taken(self, id: str) -> None:
        """The replica has accepted the call."""
        if (call := self._calls.get(id)) is not None:
            call.taken = True

    def ended(self, id: str, name: str, outcome: Outcome) -> None:
        """Ray says that a call is no longer at a replica."""
        if self._late[id, name]:
            self._late[id, name] -= 1
            self._late += collections.Counter()
            return
        call = self._calls.get(id)
        if call is None or call.backend is None or call.backend.name != name:
            return
        if self._may_reject and not call.taken:
            # Ray tries another one.
            self._not_taken(call)
            return
        self._leave(id)
        visit, backend = call.visit, call.backend
        if outcome == "finished":
            self.visits.finished(visit, backend, 200, 0, stated=False)
        elif outcome == "aborted":
            self.visits.aborted(visit, backend)
        else:
            died = outcome == "replica-died"
            self.visits.missed(visit, backend, outcome, at_fault=died)
            self.visits.done(visit, backend.name, 502 if died else 500, 0, outcome=outcome)

    def withdrawn(self, id: str) -> None:
        """The caller gave a call up before it was sent."""
        if (call := self._leave(id)) is not None and call.backend is not None:
            self.visits.aborted(call.visit, call.backend)

    def unavailable(self, name: str) -> None:
        """A replica cannot be reached."""
        if (backend := self.backends.get(name)) is not None:
            self.backends.failed(backend, "unavailable")

    def close(self) -> None:
        """Ends it; whoever waits is given no replica."""
        self.dispatcher.close()
        for id in list(self._calls):
            self._leave(id)
        if self._service is not None:
            self._service.close()
        if self._log is not None:
            self._log.close()

    async def _begin(self, id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        asked, stated = self._asked(args, kwargs)
        visit = await self.visits.begin(id, asked, time.monotonic(), task=asked.task, stated=stated, streamed=False)
        # Its end may never be told: of calls that a caller chose a replica for and did not send.
        expiry = asyncio.get_running_loop().call_later(self._options.answer_s, self._expire, id)
        call = self._calls[id] = Call(visit, expiry)
        return call

    def _asked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Asked, str | None]:
        """What is asked for, and the predicted length that the reader states."""
        # A reader is the application's own, and whatever it does, a router must go on.
        try:
            fields = dict(self._read(args, kwargs))
            stated = fields.pop("predicted_tokens", None)
            asked = read_fields(fields)
        except BodyError:
            return Asked(), None
        except Exception as error:
            self._count("reader-error", f"the reader of calls failed with {type(error).__name__}: {first_line(error)}")
            return Asked(), None
        if not fields:
            self._count("no-prompt", "the arguments of a call hold no prompt that the router can see")
        return asked, None if stated is None else str(stated)

    def _seconds(self, call: Call) -> float:
        """That a call will take where it is, at the load that is there now."""
        assert call.backend is not None
        profile, incoming = call.backend.profile, call.visit.incoming
        [load] = [each for each in self.dispatcher.brain.tracker.loads if each.server.name == call.backend.name]
        prefill_ms = profile.step_ms([(max(1, load.awaiting_prompt_tokens), 0)], [])
        sequences = max(1, min(load.in_flight, profile.max_num_seqs))
        step_ms = profile.step_ms([], [max(1, load.in_flight_tokens // sequences)] * sequences)
        return (prefill_ms + incoming.predicted_tokens * step_ms) / 1e3

    def _not_taken(self, call: Call) -> None:
        """Whatever the reason, the replica is another one's matter for this call."""
        assert call.backend is not None
        self.visits.missed(call.visit, call.backend, "not-taken", at_fault=False)
        self.telemetry.retries.labels("not-taken").inc()
        call.not_by.add(call.backend.name)
        call.backend = None

    def _leave(self, id: str) -> Call | None:
        call = self._calls.pop(id, None)
        if call is not None:
            call.expiry.cancel()
        return call

    def _expire(self, id: str) -> None:
        call = self._leave(id)
        if call is not None and call.backend is not None:
            self.dispatcher.failed(call.visit.incoming.id, "expired")
            self.backends.undecided(call.backend)
            self.visits.done(call.visit, call.backend.name, 499, 0, outcome="expired")

    def _backend(self, name: str, max_in_flight: int, profile: str | None) -> Backend:
        # The address is a name only: nothing connects to it.
        config = BackendConfig(f"http://{name}", name=name, profile=profile, max_in_flight=max_in_flight)
        made = Backend(config, self._profile_of(profile), WATCHING)
        made.health.passed()
        return made

    def _profile_of(self, name: str | None) -> StepProfile:
        """A replica's profile, or that of the deployment."""
        if name is None:
            return self._profile
        if name not in self._profiles:
            try:
                self._profiles[name] = load_profile(name)
            except InputError as error:
                self._warn(f"profile {name}", f"%s: {error}")
                self._profiles[name] = self._profile
        return self._profiles[name]

    def _report(self, replica: Replica) -> Report | None:
        try:
            return read_report(replica.stats)
        except InputError as error:
            self.telemetry.failures.labels(replica.name, "metrics").inc()
            self._warn("report", f"%s of a replica cannot be read: {error}")
            return None

    def _count(self, reason: str, text: str) -> None:
        self.telemetry.fallback.labels(reason).inc()
        self._warn(reason, f"%s: {text}")

    def _warn(self, what: str, text: str) -> None:
        """Each matter once, or the log would fill up; counters have them all."""
        if what not in self._warned and len(self._warned) < 100:
            self._warned.add(what)
            LOG.warning(text, what)
