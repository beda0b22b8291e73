"""The OpenAI endpoints: a request comes in, is placed, tried, tried elsewhere if need be, and passed on."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import time
import uuid
from typing import Protocol

from aiohttp import web

from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.config import Limits, Timeouts
from jaxroute.serve.headers import request_id_of, to_backend, to_client
from jaxroute.serve.lengths import Lengths
from jaxroute.serve.openai_body import Asked, BodyError, TokenRule, read_body
from jaxroute.serve.relay import ClientGoneError, CutError, Relay
from jaxroute.serve.secrets import Keys
from jaxroute.serve.sse import usage_of
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Incoming, Placement, Refused
from jaxroute.serve.upstream import Answer, BackendError, Call, Upstream

LOG = logging.getLogger(__name__)

PATH = re.compile(r"/v1(?:/[A-Za-z0-9_~-][A-Za-z0-9._~:-]*)+")
"""Paths that pass: no dots that lead elsewhere, nothing that is escaped."""

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


class Brain(Protocol):
    """What of the dispatcher the proxy uses."""

    async def place(self, request: Incoming, exclude: frozenset[str] = frozenset()) -> Placement:
        """Waits for a backend."""

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
      call: what is sent.
      incoming: what the brain is told; its id is the router's own.
      start_s: when it came.
      tries: backends that were tried.
      first_s: when its first token passed.
    """

    id: str
    asked: Asked
    call: Call
    incoming: Incoming
    start_s: float
    tries: int = 0
    first_s: float | None = None


class Proxy:
    """Handles requests of inference.

    Attributes:
      keys: the clients'; a reload changes them.
      draining: whether the router is shutting down.
    """

    def __init__(
        self,
        brain: Brain,
        backends: Backends,
        upstream: Upstream,
        lengths: Lengths,
        telemetry: Telemetry,
        limits: Limits,
        timeouts: Timeouts,
        keys: Keys,
        *,
        trust_predictions: bool = False,
    ) -> None:
        self._brain, self._backends, self._upstream = brain, backends, upstream
        self._lengths, self._telemetry = lengths, telemetry
        self._limits, self._timeouts = limits, timeouts
        self._rule = TokenRule()
        self._held_bytes = 0
        self._trust_predictions = trust_predictions
        self.keys = keys
        self.draining = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        start_s = time.monotonic()
        visit = await self._read(request, start_s)
        if isinstance(visit, web.Response):
            self._telemetry.requests.labels("none", str(visit.status)).inc()
            return visit
        size = len(visit.call.body)
        if self._held_bytes + size > self._limits.held_bytes:
            return self._refuse(visit, Refused("bodies", 1.0), None)
        self._held_bytes += size
        try:
            return await self._serve(request, visit)
        finally:
            self._held_bytes -= size

    def refusal(self, request: web.Request) -> web.Response | None:
        """Why a request is not even read, if so."""
        if not self.keys.allow(request.headers.get("Authorization")):
            return error(401, "the API key is missing or wrong", "invalid_api_key", close=True)
        if self.draining:
            return error(503, "the router is shutting down", "closing", retry_after_s=1, close=True)
        return None

    async def _read(self, request: web.Request, start_s: float) -> Visit | web.Response:
        if (refused := self.refusal(request)) is not None:
            return refused
        path = request.rel_url.raw_path
        if not PATH.fullmatch(path) or path in FORBIDDEN:
            return error(404, "there is no such endpoint", "not_found", close=request.can_read_body)
        raw = await self._body(request)
        if isinstance(raw, web.Response):
            return raw
        asked = Asked()
        if request.method == "POST" and (path in JSON_ONLY or request.content_type == "application/json"):
            try:
                asked = read_body(raw)
            except BodyError as bad:
                return error(400, str(bad), "invalid_body")
        if not self._backends.any_open:
            # At once: there is nothing to predict for.
            self._telemetry.refused.labels("no-backend").inc()
            return error(503, REFUSALS["no-backend"][1], "no-backend", retry_after_s=1)
        stated = request.headers.get(PREDICTION_HEADER) if self._trust_predictions else None
        length = await self._lengths.predict(asked, request.headers.get(TASK_HEADER) or asked.task, stated)
        id = request_id_of(request.headers)
        query = request.rel_url.raw_query_string
        call = Call(
            method=request.method,
            target=f"{path}?{query}" if query else path,
            headers=to_backend(request.headers, id, None, keep_key=not self.keys),
            body=raw,
            streamed=asked.stream,
        )
        incoming = Incoming(
            # The client's id may be there twice.
            id=uuid.uuid4().hex,
            prompt_tokens=self._rule.tokens(asked),
            predicted_tokens=length.predicted_tokens,
            predicted_bucket=length.predicted_bucket,
            predicted_upper=length.predicted_upper,
            task=length.task,
            streamed=asked.stream,
        )
        return Visit(id, asked, call, incoming, start_s)

    async def _body(self, request: web.Request) -> bytes | web.Response:
        limit = self._limits.body_bytes
        if (request.content_length or 0) > limit:
            return error(413, f"the body is larger than {limit} bytes", "body_too_large", close=True)
        try:
            if request.content.is_eof():
                # It came with the headers.
                return await request.read()
            async with asyncio.timeout(self._timeouts.body_s):
                return await request.read()
        except web.HTTPRequestEntityTooLarge:
            return error(413, f"the body is larger than {limit} bytes", "body_too_large", close=True)
        except TimeoutError:
            return error(408, "the body did not come in time", "body_timeout", close=True)
        except (web.RequestPayloadError, ValueError):
            return error(400, "the body cannot be read", "invalid_body", close=True)

    async def _serve(self, request: web.Request, visit: Visit) -> web.StreamResponse:
        """Tries backends until one answers."""
        exclude: frozenset[str] = frozenset()
        last: BackendError | None = None
        while True:
            try:
                placement = await self._brain.place(visit.incoming, exclude)
            except Refused as refused:
                return self._refuse(visit, refused, last)
            except asyncio.CancelledError:
                self._left(visit, "")
                raise
            visit.incoming = placement.request
            self._note(placement)
            backend = self._backends.get(placement.backend)
            if backend is None:
                # Reloaded at this very moment.
                self._brain.failed(visit.incoming.id)
                exclude |= {placement.backend}
                continue
            visit.tries += 1
            self._backends.started(backend)
            try:
                answer = await self._upstream.start(backend, visit.call)
            except BackendError as failure:
                self._brain.failed(visit.incoming.id)
                if failure.at_fault:
                    self._backends.failed(backend, failure.reason)
                else:
                    self._backends.undecided(backend)
                exclude, last = exclude | {backend.name}, failure
                if visit.tries > self._limits.retries or not _is_worth_another(visit.call, failure):
                    return self._give_up(visit, backend.name, failure)
                self._telemetry.retries.labels(failure.reason).inc()
                continue
            except BaseException:
                self._brain.failed(visit.incoming.id, "aborted")
                self._backends.undecided(backend)
                self._left(visit, backend.name)
                raise
            return await self._pass_on(request, visit, backend, answer)

    async def _pass_on(
        self, request: web.Request, visit: Visit, backend: Backend, answer: Answer
    ) -> web.StreamResponse:
        id, headers = visit.incoming.id, to_client(answer.headers, visit.id, backend.name)
        if answer.stream is None:
            self._whole(visit, backend, answer)
            return web.Response(status=answer.status, headers=headers, body=answer.body)
        response = web.StreamResponse(status=answer.status, headers=headers)

        def count(tokens: int) -> None:
            if visit.first_s is None:
                visit.first_s = time.monotonic()
                self._telemetry.ttft_s.labels(backend.name).observe(visit.first_s - visit.start_s)
                self._brain.first_token(id)
                tokens -= 1
            if tokens:
                self._brain.tokens(id, tokens)

        relay = Relay(request, self._timeouts.write_s, count)
        try:
            await relay.run(answer, response)
        except CutError as cut:
            self._brain.failed(id)
            self._backends.failed(backend, str(cut))
            self._telemetry.cut.labels(backend.name).inc()
            self._done(visit, backend.name, answer.status, relay.counter.tokens, outcome=str(cut))
        except BaseException as gone:
            self._brain.failed(id, "aborted")
            self._backends.undecided(backend)
            self._left(visit, backend.name)
            if not isinstance(gone, ClientGoneError):
                raise
        else:
            counter = relay.counter
            self._brain.finished(id, counter.tokens if counter.stated else None)
            self._backends.answered(backend)
            self._learn(visit, counter.prompt_tokens, counter.tokens)
            self._done(visit, backend.name, answer.status, counter.tokens)
        return response

    def _whole(self, visit: Visit, backend: Backend, answer: Answer) -> None:
        """An answer that is not streamed."""
        usage = usage_of(answer.body[-4096:]) or usage_of(answer.body) if answer.status == 200 else None
        tokens = usage[1] if usage else 0
        self._brain.finished(visit.incoming.id, tokens)
        self._backends.answered(backend)
        if usage:
            self._learn(visit, usage[0] or None, tokens)
        self._done(visit, backend.name, answer.status, tokens)

    def _learn(self, visit: Visit, prompt_tokens: int | None, output_tokens: int) -> None:
        if prompt_tokens:
            self._rule.correct(visit.asked, prompt_tokens)
        if output_tokens:
            self._lengths.learn(output_tokens)

    def _note(self, placement: Placement) -> None:
        """Counts a placement."""
        decision, telemetry = placement.decision, self._telemetry
        telemetry.decisions.labels(placement.backend, decision.decided_by).inc()
        telemetry.decision_s.observe(decision.decision_s)
        telemetry.wait_s.observe(placement.router_wait_s)
        if decision.fallback is not None:
            telemetry.fallback.labels(decision.fallback).inc()
        if decision.shadow is not None:
            telemetry.shadow.labels(str(decision.shadow == placement.backend).lower()).inc()

    def _refuse(self, visit: Visit, refused: Refused, last: BackendError | None) -> web.Response:
        if refused.reason == "no-backend" and last is not None:
            return self._give_up(visit, "none", last)
        status, text = REFUSALS[refused.reason]
        self._telemetry.refused.labels(refused.reason).inc()
        self._done(visit, "none", status, 0, outcome=refused.reason)
        return error(status, text, refused.reason, retry_after_s=refused.retry_after_s)

    def _give_up(self, visit: Visit, backend: str, failure: BackendError) -> web.Response:
        """No further backend is tried: the client gets what the last one said, or an error of the router's own."""
        answer = failure.answer
        if answer is not None:
            self._done(visit, backend, answer.status, 0, outcome=failure.reason)
            response = web.Response(
                status=answer.status, headers=to_client(answer.headers, visit.id, backend), body=answer.body
            )
            if answer.status in (429, 503) and "Retry-After" not in response.headers:
                response.headers["Retry-After"] = "1"
            return response
        status = 504 if failure.reason == "timeout" else 502
        if not self._backends.any_open:
            status = 503
        self._done(visit, backend, status, 0, outcome=failure.reason)
        text = "the backend did not answer in time" if status == 504 else "no backend could answer the request"
        return error(status, text, f"backend_{failure.reason}", retry_after_s=1 if status == 503 else None)

    def _left(self, visit: Visit, backend: str) -> None:
        self._telemetry.aborted.inc()
        self._done(visit, backend or "none", 499, 0, outcome="aborted")

    def _done(self, visit: Visit, backend: str, status: int, tokens: int, outcome: str = "finished") -> None:
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
                "streamed": visit.call.streamed,
                "prompt_tokens": visit.incoming.prompt_tokens,
                "predicted_tokens": visit.incoming.predicted_tokens,
                "output_tokens": tokens,
                "tries": visit.tries,
                "ttft_s": ttft_s,
                "e2e_s": round(e2e_s, 6),
            }
            LOG.info("request", extra=facts)


def _is_worth_another(call: Call, failure: BackendError) -> bool:
    """Whether another backend could do better; an answer that is not streamed had all the time that there is."""
    return failure.reason != "too-large" and (call.streamed or failure.reason != "timeout")
