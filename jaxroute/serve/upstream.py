"""One try of a request at one backend, up to the first bytes of its answer."""

from __future__ import annotations

import dataclasses

from multidict import CIMultiDict

from jaxroute.serve.backends import Backend
from jaxroute.serve.config import Limits, Timeouts
from jaxroute.serve.connection import Connection, ConnectionLostError, GivenUpError, SilentError
from jaxroute.serve.pool import Place, Pool

BUSY = frozenset((429, 503))
FAULTY = frozenset((500, 502, 503, 504))
"""Statuses that count against a backend; with 429 those by which another one is tried."""

EVENT_STREAM = "text/event-stream"

WITH_BODY = frozenset(("POST", "PUT", "PATCH"))
"""Methods whose request says how long its body is even where it has none."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What is sent.

    Attributes:
      method, target: `POST`, and path with query as the client wrote them.
      headers: without those of a single backend.
      body: its bytes.
      streamed: whether the client asked for a stream.
    """

    method: str
    target: str
    headers: CIMultiDict[str]
    body: bytes
    streamed: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """The beginning of an answer.

    Attributes:
      status, headers: the backend's.
      body: all of it; of a stream, its first bytes.
      stream: the rest of a stream; None where the body is whole.
    """

    status: int
    headers: CIMultiDict[str]
    body: bytes
    stream: Stream | None = None


class BackendError(Exception):
    """A backend failed before the first byte.

    Attributes:
      reason: `connect`, `closed`, `timeout`, `down`, `http-500` and so on, or `too-large`.
      answer: what it said, where it said anything.
    """

    def __init__(self, reason: str, answer: Answer | None = None) -> None:
        super().__init__(reason)
        self.reason, self.answer = reason, answer

    @property
    def at_fault(self) -> bool:
        """Whether it counts against the backend: to be busy is no fault."""
        return self.reason not in ("http-429", "too-large")


class Stream:
    """The rest of a streamed answer; whoever has it must close it."""

    def __init__(self, connection: Connection, place: Place, pool: Pool) -> None:
        self._connection, self._place, self._pool = connection, place, pool

    @property
    def at_end(self) -> bool:
        """Whether nothing more comes."""
        return self._connection.at_end

    async def read(self) -> bytes:
        """What has come since, nothing at the end.

        Raises:
          OSError: the connection was lost.
          TimeoutError: the backend went silent.
        """
        return await self._connection.read()

    def close(self) -> None:
        """Gives the connection back where the answer is at its end, closes it where not."""
        self._pool.give(self._place, self._connection)


class Upstream:
    """Connections to all backends."""

    def __init__(self, timeouts: Timeouts, limits: Limits) -> None:
        self._timeouts, self._limits = timeouts, limits
        self._pool = Pool(timeouts.connect_s)

    async def close(self) -> None:
        """Closes all connections that are idle."""
        self._pool.close()

    async def start(self, backend: Backend, call: Call) -> Answer:
        """Sends a request and waits for the first bytes of its answer; of one that is no stream, for all of it.

        A connection that the backend closed while it was idle may break under the request: then it is sent again, on a
        new connection.

        Raises:
          BackendError: the backend failed, and nothing of its answer has been seen by anybody.
        """
        place = backend.config.url, backend.tls
        head = _head(backend, call)
        connection = await self._connect(place)
        reused = connection.used > 0
        try:
            return await self._try(connection, place, backend, call, head)
        except ConnectionLostError as error:
            if not (reused and connection.untouched):
                raise BackendError("closed") from error
        try:
            return await self._try(await self._connect(place, fresh=True), place, backend, call, head)
        except ConnectionLostError as error:
            raise BackendError("closed") from error

    async def _connect(self, place: Place, *, fresh: bool = False) -> Connection:
        try:
            return await self._pool.take(place, fresh=fresh)
        except (OSError, TimeoutError) as error:
            raise BackendError("connect") from error

    async def _try(self, connection: Connection, place: Place, backend: Backend, call: Call, head: bytes) -> Answer:
        timeouts, keep = self._timeouts, False
        silence_s = timeouts.first_byte_s if call.streamed else timeouts.answer_s
        backend.waits.add(connection)
        try:
            connection.send(head, call.body, silence_s, no_body=call.method == "HEAD")
            await connection.begin()
            status, headers = connection.status, connection.headers
            if status == 200 and headers.get("Content-Type", "").lower().startswith(EVENT_STREAM):
                first = await connection.read()
                connection.allow_silence(timeouts.stream_s)
                keep = True
                return Answer(status, headers, first, Stream(connection, place, self._pool))
            answer = Answer(status, headers, await self._whole(connection))
        except SilentError as error:
            raise BackendError("timeout") from error
        except GivenUpError as error:
            raise BackendError("down") from error
        finally:
            backend.waits.discard(connection)
            if not keep:
                self._pool.give(place, connection)
        if status in FAULTY or status in BUSY:
            raise BackendError(f"http-{status}", answer)
        return answer

    async def _whole(self, connection: Connection) -> bytes:
        pieces, size = [], 0
        while piece := await connection.read():
            pieces.append(piece)
            size += len(piece)
            if size > self._limits.answer_bytes:
                raise BackendError("too-large")
        return b"".join(pieces)


def _head(backend: Backend, call: Call) -> bytes:
    """First line and headers of a request."""
    headers = call.headers
    lines = [f"{call.method} {call.target} HTTP/1.1", f"Host: {backend.host}"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name.lower() != "authorization"]
    key = f"Bearer {backend.key}" if backend.key is not None else headers.get("Authorization")
    if key is not None:
        lines.append(f"Authorization: {key}")
    if call.body or call.method in WITH_BODY:
        lines.append(f"Content-Length: {len(call.body)}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or call.target.count(" "):
        raise ValueError("a line break within a header")
    return f"{text}\r\n\r\n".encode("utf-8", "surrogateescape")
