"""The OpenAI endpoints: a request comes in, is placed, tried, tried elsewhere if need be, and passed on."""

from __future__ import annotations

import asyncio
import re
import time

from aiohttp import web

from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.config import Limits, Timeouts
from jaxroute.serve.headers import request_id_of, to_backend, to_client
from jaxroute.serve.openai_body import Asked, BodyError, read_body
from jaxroute.serve.relay import ClientGoneError, CutError, Relay
from jaxroute.serve.secrets import Keys
from jaxroute.serve.sse import usage_of
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Refused
from jaxroute.serve.upstream import Answer, BackendError, Call, Upstream
from jaxroute.serve.visits import FORBIDDEN, JSON_ONLY, PREDICTION_HEADER, REFUSALS, TASK_HEADER, Visit, Visits

PATH = re.compile(r"/v1(?:/[A-Za-z0-9_~-][A-Za-z0-9._~:-]*)+")
"""Paths that pass: no dots that lead elsewhere, nothing that is escaped."""


class Proxy:
    """Handles requests of inference.

    Attributes:
      keys: the clients'; a reload changes them.
      draining: whether the router is shutting down.
    """

    def __init__(
        self,
        visits: Visits,
        backends: Backends,
        upstream: Upstream,
        telemetry: Telemetry,
        limits: Limits,
        timeouts: Timeouts,
        keys: Keys,
    ) -> None:
        self._visits, self._backends, self._upstream, self._telemetry = visits, backends, upstream, telemetry
        self._limits, self._timeouts = limits, timeouts
        self._held_bytes = 0
        self.keys = keys
        self.draining = False

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        start_s = time.monotonic()
        read = await self._read(request, start_s)
        if isinstance(read, web.Response):
            self._telemetry.requests.labels("none", str(read.status)).inc()
            return read
        visit, call = read
        size = len(call.body)
        if self._held_bytes + size > self._limits.held_bytes:
            return self._refuse(visit, Refused("bodies", 1.0), None)
        self._held_bytes += size
        try:
            return await self._serve(request, visit, call)
        finally:
            self._held_bytes -= size

    def refusal(self, request: web.Request) -> web.Response | None:
        """Why a request is not even read, if so."""
        if not self.keys.allow(request.headers.get("Authorization")):
            return error(401, "the API key is missing or wrong", "invalid_api_key", close=True)
        if self.draining:
            return error(503, "the router is shutting down", "closing", retry_after_s=1, close=True)
        return None

    async def _read(self, request: web.Request, start_s: float) -> tuple[Visit, Call] | web.Response:
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
        id = request_id_of(request.headers)
        visit = await self._visits.begin(
            id,
            asked,
            start_s,
            task=request.headers.get(TASK_HEADER),
            stated=request.headers.get(PREDICTION_HEADER),
            streamed=asked.stream,
        )
        query = request.rel_url.raw_query_string
        call = Call(
            method=request.method,
            target=f"{path}?{query}" if query else path,
            headers=to_backend(request.headers, id, None, keep_key=not self.keys),
            body=raw,
            streamed=asked.stream,
        )
        return visit, call

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

    async def _serve(self, request: web.Request, visit: Visit, call: Call) -> web.StreamResponse:
        """Tries backends until one answers."""
        visits, exclude = self._visits, frozenset[str]()
        last: BackendError | None = None
        while True:
            try:
                placement = await visits.place(visit, exclude)
            except Refused as refused:
                return self._refuse(visit, refused, last)
            backend = self._backends.get(placement.backend)
            if backend is None:
                # Reloaded at this very moment.
                visits.unplace(visit)
                exclude |= {placement.backend}
                continue
            visits.sent(visit, backend)
            try:
                answer = await self._upstream.start(backend, call)
            except BackendError as failure:
                visits.missed(visit, backend, failure.reason, at_fault=failure.at_fault)
                exclude, last = exclude | {backend.name}, failure
                if visit.tries > self._limits.retries or not _is_worth_another(call, failure):
                    return self._give_up(visit, backend.name, failure)
                self._telemetry.retries.labels(failure.reason).inc()
                continue
            except BaseException:
                visits.aborted(visit, backend)
                raise
            return await self._pass_on(request, visit, backend, answer)

    async def _pass_on(
        self, request: web.Request, visit: Visit, backend: Backend, answer: Answer
    ) -> web.StreamResponse:
        visits, headers = self._visits, to_client(answer.headers, visit.id, backend.name)
        if answer.stream is None:
            usage = usage_of(answer.body[-4096:]) or usage_of(answer.body) if answer.status == 200 else None
            prompt_tokens, tokens = usage or (None, 0)
            visits.finished(visit, backend, answer.status, tokens, prompt_tokens=prompt_tokens)
            return web.Response(status=answer.status, headers=headers, body=answer.body)
        response = web.StreamResponse(status=answer.status, headers=headers)
        relay = Relay(request, self._timeouts.write_s, lambda tokens: visits.tokens(visit, backend.name, tokens))
        counter = relay.counter
        try:
            await relay.run(answer, response)
        except CutError as cut:
            visits.cut(visit, backend, str(cut), answer.status, counter.tokens)
        except BaseException as gone:
            visits.aborted(visit, backend)
            if not isinstance(gone, ClientGoneError):
                if response.prepared and request.transport is not None:
                    # No second answer within the first one.
                    request.transport.abort()
                raise
        else:
            prompt_tokens = counter.prompt_tokens
            visits.finished(
                visit, backend, answer.status, counter.tokens, stated=counter.stated, prompt_tokens=prompt_tokens
            )
        return response

    def _refuse(self, visit: Visit, refused: Refused, last: BackendError | None) -> web.Response:
        if refused.reason == "no-backend" and last is not None:
            return self._give_up(visit, "none", last)
        status, text = self._visits.refused(visit, refused.reason)
        return error(status, text, refused.reason, retry_after_s=refused.retry_after_s)

    def _give_up(self, visit: Visit, backend: str, failure: BackendError) -> web.Response:
        """No further backend is tried: the client gets what the last one said, or an error of the router's own."""
        answer = failure.answer
        if answer is not None:
            self._visits.done(visit, backend, answer.status, 0, outcome=failure.reason)
            response = web.Response(
                status=answer.status, headers=to_client(answer.headers, visit.id, backend), body=answer.body
            )
            if answer.status in (429, 503) and "Retry-After" not in response.headers:
                response.headers["Retry-After"] = "1"
            return response
        status = 504 if failure.reason == "timeout" else 502
        if not self._backends.any_open:
            status = 503
        self._visits.done(visit, backend, status, 0, outcome=failure.reason)
        text = "the backend did not answer in time" if status == 504 else "no backend could answer the request"
        return error(status, text, f"backend_{failure.reason}", retry_after_s=1 if status == 503 else None)


def _is_worth_another(call: Call, failure: BackendError) -> bool:
    """Whether another backend could do better; an answer that is not streamed had all the time that there is."""
    return failure.reason != "too-large" and (call.streamed or failure.reason != "timeout")
