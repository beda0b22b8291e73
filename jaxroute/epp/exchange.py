"""One HTTP request as Envoy tells of it: its headers and body, where it is to go, and what its answer shows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import grpc

from jaxroute.epp import protocol
from jaxroute.epp.answer import Answer
from jaxroute.epp.desk import Desk
from jaxroute.epp.request_body import Body, EndedError, Share, TooLargeError, receive
from jaxroute.serve.backends import Backend
from jaxroute.serve.headers import REQUEST_ID
from jaxroute.serve.openai_body import Asked, BodyError, read_body
from jaxroute.serve.types import Refused
from jaxroute.serve.upstream import BUSY, FAULTY
from jaxroute.serve.visits import FORBIDDEN, JSON_ONLY, PREDICTION_HEADER, REFUSALS, TASK_HEADER, Visit

HELD_S = 0.05
"""Seconds after which a request that still waits counts as held: Envoy is asked for time, and watched for its end."""

OWN_HEADERS = "x-jaxroute-"

BACKEND_HEADER = "x-jaxroute-backend"


class Exchange:
    """One stream of `Process`."""

    def __init__(self, desk: Desk, read: Callable[[], Awaitable[Any]], write: Callable[[Any], Awaitable[None]]) -> None:
        """Remembers the two ends.

        Args:
          desk: what all exchanges share.
          read: the next message; `grpc.aio.EOF` at the end.
          write: sends a message.
        """
        self._desk, self._core, self._visits = desk, desk.core, desk.core.visits
        self._read_one, self._write_one = read, write
        self._writing: asyncio.Task[None] | None = None
        self._start_s = time.monotonic()
        self._next: asyncio.Task[Any] | None = None
        self._placed: tuple[Visit, Backend] | None = None
        self._answer: Answer | None = None

    async def run(self) -> None:
        """To its end; whatever happens, the request is accounted for."""
        try:
            await self._choose()
            while (message := await self._read()) is not grpc.aio.EOF:
                await self._see(message)
        except EndedError:
            pass
        finally:
            if self._next is not None:
                self._next.cancel()
            self._close()
        if self._writing is not None:
            await self._writing

    async def _write(self, message: Any) -> None:
        """Sends a message while the next one is awaited; the one before has been sent."""
        if self._writing is not None:
            await self._writing
        self._writing = asyncio.create_task(self._send(message))

    async def _send(self, message: Any) -> None:
        with contextlib.suppress(grpc.aio.UsageError, grpc.aio.BaseError, asyncio.InvalidStateError):
            # Who is not there any more is told nothing; reading says so.
            await self._write_one(message)

    async def _read(self) -> Any:
        if self._next is None:
            return await self._read_one()
        task, self._next = self._next, None
        return await task

    # Until it is placed.

    async def _choose(self) -> None:
        """Reads the request, places it, and says so.

        Raises:
          EndedError: it is refused, or has ended.
        """
        first = await self._read()
        if first is grpc.aio.EOF or first.WhichOneof("request") != "request_headers":
            raise EndedError
        self._response_mode = first.protocol_config.response_body_mode
        # Envoy before 1.33 does not say.
        self._shows_body = self._response_mode != protocol.NONE or not first.HasField("protocol_config")
        headers = protocol.headers_of(first.request_headers)
        path = headers.get(":path", "").partition("?")[0]
        if not self._core.keys.allow(headers.get("authorization")):
            await self._refuse(401, "the API key is missing or wrong", "invalid_api_key")
        if path.endswith(tuple(FORBIDDEN)):
            await self._refuse(404, "there is no such endpoint", "not_found")
        with Share(self._desk.held) as share:
            try:
                body = await receive(first, self._read, self._write, share)
            except TooLargeError as large:
                if large.together:
                    await self._refuse(*REFUSALS["bodies"], "bodies", retry_after_s=1)
                limit = self._core.config.limits.body_bytes
                await self._refuse(413, f"the body is larger than {limit} bytes", "body_too_large")
            asked = await self._asked(headers, path, body)
            subset = protocol.subset_of(first)
            backend = await self._place(headers, asked, self._desk.endpoints.outside(subset))
            endpoints = self._desk.choices(backend, self._desk.endpoints.outside(subset))
            await self._write(protocol.destined(body.decides_on, endpoints, *self._changes(headers, backend)))
            for message in body.rest:
                await self._write(message)

    async def _asked(self, headers: Mapping[str, str], path: str, body: Body) -> Asked:
        is_json = path.endswith(tuple(JSON_ONLY)) or headers.get("content-type", "").startswith("application/json")
        if headers.get(":method") != "POST" or not is_json:
            return Asked()
        if body.is_whole:
            try:
                return read_body(body.data)
            except BodyError as bad:
                await self._refuse(400, str(bad), "invalid_body")
        # Its length is all that is known.
        text = headers.get("content-length", "")
        return Asked(characters=int(text) if text.isdecimal() and len(text) < 12 else len(body.data))

    async def _place(self, headers: Mapping[str, str], asked: Asked, exclude: frozenset[str]) -> Backend:
        visits, backends = self._visits, self._core.backends
        if not backends.any_open:
            # At once: there is nothing to predict for.
            self._core.telemetry.refused.labels("no-backend").inc()
            await self._refuse(*REFUSALS["no-backend"], "no-backend", retry_after_s=1)
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.get_running_loop().call_later(HELD_S, self._watch, task)
        try:
            visit = await visits.begin(
                _id_of(headers),
                asked,
                self._start_s,
                task=headers.get(TASK_HEADER),
                stated=headers.get(PREDICTION_HEADER),
                streamed=asked.stream and self._shows_body,
            )
            while True:
                placement = await visits.place(visit, exclude)
                backend = backends.get(placement.backend)
                if backend is not None:
                    break
                # Reloaded at this very moment.
                visits.unplace(visit)
                exclude |= {placement.backend}
        except Refused as no:
            status, text = visits.refused(visit, no.reason)
            await self._write(protocol.refused(status, text, no.reason, no.retry_after_s))
            raise EndedError from no
        except asyncio.CancelledError:
            if self._next is None or not self._next.done():
                raise
            # By the watch, since Envoy has ended it.
            task.uncancel()
            raise EndedError from None
        finally:
            watch.cancel()
        self._placed = visit, backend
        visits.sent(visit, backend)
        return backend

    def _watch(self, waiting: asyncio.Task[Any]) -> None:
        """The request is held: asks for time, and from now on sees when Envoy ends it."""

        def wake(read: asyncio.Task[Any]) -> None:
            if self._placed is None:
                waiting.cancel()
            if not read.cancelled():
                # Whoever reads next gets it; where nobody does, it is no news.
                read.exception()

        self._next = asyncio.create_task(self._hold())
        self._next.add_done_callback(wake)

    async def _hold(self) -> Any:
        await self._write(protocol.more_time(self._core.config.limits.wait_s + 1))
        return await self._read_one()

    def _changes(self, headers: Mapping[str, str], backend: Backend) -> tuple[list[tuple[str, str]], list[str]]:
        """Headers that the backend gets from the router, and those that it must not get."""
        remove = [name for name in headers if name.startswith(OWN_HEADERS)]
        if self._shows_body and "accept-encoding" in headers:
            # What comes compressed could not be counted.
            remove.append("accept-encoding")
        if backend.key is not None:
            return [("authorization", f"Bearer {backend.key}")], remove
        if self._core.keys and "authorization" in headers:
            remove.append("authorization")
        return [], remove

    async def _refuse(self, status: int, text: str, code: str, retry_after_s: float | None = None) -> NoReturn:
        self._core.telemetry.requests.labels("none", str(status)).inc()
        await self._write(protocol.refused(status, text, code, retry_after_s))
        raise EndedError

    # Once it is placed.

    async def _see(self, message: Any) -> None:
        kind = message.WhichOneof("request")
        if kind == "response_headers":
            self._answer = Answer(protocol.headers_of(message.response_headers))
            self._follow(protocol.served_of(message))
            name = "none" if self._placed is None else self._placed[1].name
            if message.response_headers.end_of_stream:
                self._end()
            await self._write(protocol.with_header(BACKEND_HEADER, name))
        elif kind == "response_body":
            await self._see_body(message.response_body)
        else:
            if kind == "response_trailers":
                self._end()
            await self._write(protocol.CONTINUE[kind])

    async def _see_body(self, body: Any) -> None:
        # Counted first: Envoy ends the stream as soon as it has the last answer.
        if self._placed is not None and self._answer is not None and (tokens := self._answer.see(body.body)):
            visit, backend = self._placed
            self._visits.tokens(visit, backend.name, tokens)
        if body.end_of_stream:
            self._end()
        if self._response_mode == protocol.FULL_DUPLEX:
            for piece in protocol.passed_on("response_body", body.body, end=body.end_of_stream):
                await self._write(piece)
        else:
            await self._write(protocol.CONTINUE["response_body"])

    def _follow(self, endpoint: str | None) -> None:
        """The request may have been answered by another backend than was chosen."""
        if self._placed is None or endpoint is None:
            return
        visit, backend = self._placed
        name = self._desk.endpoints.name_of(endpoint)
        other = None if name is None else self._core.backends.get(name)
        if other is not None and other.name != backend.name:
            self._visits.moved(visit, backend, other)
            self._placed = visit, other

    def _end(self) -> None:
        """The answer is complete."""
        if self._placed is None or self._answer is None:
            return
        (visit, backend), status = self._placed, self._answer.status
        self._placed = None
        if status in FAULTY or status in BUSY:
            reason = f"http-{status}"
            self._visits.missed(visit, backend, reason, at_fault=status != 429)
            self._visits.done(visit, backend.name, status, 0, outcome=reason)
            return
        tokens, prompt_tokens, stated = self._answer.end()
        self._visits.finished(visit, backend, status, tokens, stated=stated, prompt_tokens=prompt_tokens)

    def _close(self) -> None:
        """Envoy says no more; where it would have shown the end of the answer and has not, there was none."""
        if self._placed is None:
            return
        visit, backend = self._placed
        if self._answer is not None and not self._shows_body:
            self._placed = None
            self._visits.finished(visit, backend, self._answer.status, 0, stated=False)
        else:
            self._placed = None
            self._visits.aborted(visit, backend)


def _id_of(headers: Mapping[str, str]) -> str:
    """Envoy's id of the request, or that of the client, if it is a harmless one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else "none"
