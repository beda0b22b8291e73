"""Requests while they are here: what the brain is told of them, what is counted, learned and logged; no sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from typing import Protocol

from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.lengths import Lengths
from jaxroute.serve.openai_body import Asked, TokenRule
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Incoming, Placement

LOG = logging.getLogger(__name__)

FORBIDDEN = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))
"""They change one server behind the back of all others."""

JSON_ONLY = frozenset(("/v1/completions", "/v1/chat/completions"))

TASK_HEADER = "x-jaxroute-task"

PREDICTION_HEADER = "x-jaxroute-predicted-tokens"
"""Output tokens that a trusted gateway has predicted: `TOKENS` or `TOKENS,MOST`. No backend sees it."""

REFUSALS = {
    "queue-full": (429, "too many requests are waiting"),
    "wait-limit": (429, "the request waited too long for a server"),
    "no-backend": (503, "no server is available"),
    "closing": (503, "the router is shutting down"),
    "bodies": (503, "the requests under way are too large together"),
}


class Placer(Protocol):
    """What of the dispatcher a front end uses."""

    async def place(self, request: Incoming, exclude: frozenset[str] = frozenset()) -> Placement:
        """Waits for a backend."""

    def put(self, request: Incoming, backend: str, decided_by: str) -> None:
        """Somebody else has chosen a backend."""

    def first_token(self, id: str) -> None:
        """The first token has been seen."""

    def tokens(self, id: str, count: int) -> None:
        """Further tokens have been seen."""

    def finished(self, id: str, output_tokens: int | None = None) -> None:
        """The request is complete."""

    def failed(self, id: str, outcome: str = "failed") -> None:
        """The request ends without being complete."""


@dataclasses.dataclass
class Visit:
    """What is known of a request while it is here.

    Attributes:
      id: the request's, as client and backend know it.
      asked: what is asked for.
      incoming: what the brain is told; its id is the router's own.
      start_s: when it came.
      tries: backends that were tried.
      first_s: when its first token passed.
    """

    id: str
    asked: Asked
    incoming: Incoming
    start_s: float
    tries: int = 0
    first_s: float | None = None


class Visits:
    """The accounts of all requests."""

    def __init__(
        self,
        placer: Placer,
        backends: Backends,
        lengths: Lengths,
        telemetry: Telemetry,
        *,
        trust_predictions: bool = False,
    ) -> None:
        self._placer, self._backends, self._lengths, self._telemetry = placer, backends, lengths, telemetry
        self._trust_predictions = trust_predictions
        self._rule = TokenRule()

    async def begin(
        self, id: str, asked: Asked, start_s: float, *, task: str | None, stated: str | None, streamed: bool
    ) -> Visit:
        """A request is here: its lengths are estimated.

        Args:
          id: as the client knows it; it may be there twice.
          asked: what is asked for.
          start_s: when it came.
          task: what the client calls it.
          stated: the predicted length that its header states, which counts where it is trusted.
          streamed: whether its tokens will be seen one after the other.
        """
        length = await self._lengths.predict(asked, task or asked.task, stated if self._trust_predictions else None)
        incoming = Incoming(
            id=uuid.uuid4().hex,
            prompt_tokens=self._rule.tokens(asked),
            predicted_tokens=length.predicted_tokens,
            predicted_bucket=length.predicted_bucket,
            predicted_upper=length.predicted_upper,
            task=length.task,
            streamed=streamed,
        )
        return Visit(id, asked, incoming, start_s)

    async def place(self, visit: Visit, exclude: frozenset[str]) -> Placement:
        """Waits for a backend.

        Raises:
          Refused: there is none for it.
        """
        try:
            placement = await self._placer.place(visit.incoming, exclude)
        except asyncio.CancelledError:
            self.left(visit, "")
            raise
        visit.incoming = placement.request
        self.placed(placement)
        return placement

    def placed(self, placement: Placement) -> None:
        """Counts a placement."""
        decision, telemetry = placement.decision, self._telemetry
        telemetry.decisions.labels(placement.backend, decision.decided_by).inc()
        telemetry.decision_s.observe(decision.decision_s)
        telemetry.wait_s.observe(placement.router_wait_s)
        if decision.fallback is not None:
            telemetry.fallback.labels(decision.fallback).inc()
        if decision.shadow is not None:
            telemetry.shadow.labels(str(decision.shadow == placement.backend).lower()).inc()

    def unplace(self, visit: Visit) -> None:
        """The request does not go to where it was placed."""
        self._placer.failed(visit.incoming.id)

    def sent(self, visit: Visit, backend: Backend) -> None:
        """The request goes to a backend."""
        visit.tries += 1
        self._backends.started(backend)

    def tokens(self, visit: Visit, backend: str, tokens: int) -> None:
        """Further output tokens have passed."""
        if visit.first_s is None:
            visit.first_s = time.monotonic()
            self._telemetry.ttft_s.labels(backend).observe(visit.first_s - visit.start_s)
            self._placer.first_token(visit.incoming.id)
            tokens -= 1
        if tokens:
            self._placer.tokens(visit.incoming.id, tokens)

    def missed(self, visit: Visit, backend: Backend, reason: str, *, at_fault: bool = True) -> None:
        """A backend failed before the first byte."""
        self._placer.failed(visit.incoming.id)
        if at_fault:
            self._backends.failed(backend, reason)
        else:
            self._backends.undecided(backend)

    def moved(self, visit: Visit, backend: Backend, to: Backend) -> None:
        """A gateway has tried another backend, which took it, since the one that was chosen failed."""
        self.missed(visit, backend, "gateway-retry")
        self._telemetry.retries.labels("gateway-retry").inc()
        self._placer.put(visit.incoming, to.name, "gateway")
        self.sent(visit, to)

    def finished(
        self,
        visit: Visit,
        backend: Backend,
        status: int,
        tokens: int,
        *,
        stated: bool = True,
        prompt_tokens: int | None = None,
    ) -> None:
        """The answer is complete.

        Args:
          visit: the request.
          backend: that answered.
          status: of HTTP.
          tokens: output tokens.
          stated: whether the server said how many there are.
          prompt_tokens: of the prompt, if it said.
        """
        self._placer.finished(visit.incoming.id, tokens if stated else None)
        self._backends.answered(backend)
        if prompt_tokens:
            self._rule.correct(visit.asked, prompt_tokens)
        if tokens:
            self._lengths.learn(tokens)
        self.done(visit, backend.name, status, tokens)

    def cut(self, visit: Visit, backend: Backend, reason: str, status: int, tokens: int) -> None:
        """A backend died in mid-stream."""
        self._placer.failed(visit.incoming.id)
        self._backends.failed(backend, reason)
        self._telemetry.cut.labels(backend.name).inc()
        self.done(visit, backend.name, status, tokens, outcome=reason)

    def aborted(self, visit: Visit, backend: Backend) -> None:
        """The client left while a backend had its request."""
        self._placer.failed(visit.incoming.id, "aborted")
        self._backends.undecided(backend)
        self.left(visit, backend.name)

    def left(self, visit: Visit, backend: str) -> None:
        """The client left; counts it."""
        self._telemetry.aborted.inc()
        self.done(visit, backend or "none", 499, 0, outcome="aborted")

    def refused(self, visit: Visit, reason: str) -> tuple[int, str]:
        """The request is not placed; status and text of the answer."""
        status, text = REFUSALS[reason]
        self._telemetry.refused.labels(reason).inc()
        self.done(visit, "none", status, 0, outcome=reason)
        return status, text

    def done(self, visit: Visit, backend: str, status: int, tokens: int, outcome: str = "finished") -> None:
        """Counts and logs the end of a request."""
        e2e_s = time.monotonic() - visit.start_s
        telemetry = self._telemetry
        telemetry.requests.labels(backend, str(status)).inc()
        if outcome == "finished":
            telemetry.e2e_s.labels(backend).observe(e2e_s)
        if tokens:
            telemetry.tokens.labels(backend).inc(tokens)
        if LOG.isEnabledFor(logging.INFO):
            ttft_s = None if visit.first_s is None else round(visit.first_s - visit.start_s, 6)
            facts = {
                "request_id": visit.id,
                "backend": backend,
                "status": status,
                "outcome": outcome,
                "streamed": visit.asked.stream,
                "prompt_tokens": visit.incoming.prompt_tokens,
                "predicted_tokens": visit.incoming.predicted_tokens,
                "output_tokens": tokens,
                "tries": visit.tries,
                "ttft_s": ttft_s,
                "e2e_s": round(e2e_s, 6),
            }
            LOG.info("request", extra=facts)
