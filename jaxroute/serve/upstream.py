"""One try of a request at one backend, up to the first bytes of its answer."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from jaxroute.serve.backends import Backend
from jaxroute.serve.config import Limits, Timeouts

KEEP_ALIVE_S = 4.0
"""That an idle connection is kept: vLLM closes its own after 5 s."""

BUSY = frozenset((429, 503))
FAULTY = frozenset((500, 502, 503, 504))
"""Statuses that count against a backend; with 429 those by which another one is tried."""

EVENT_STREAM = "text/event-stream"


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
    stream: aiohttp.ClientResponse | None = None


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


class Upstream:
    """Pooled connections to all backends."""

    def __init__(self, timeouts: Timeouts, limits: Limits) -> None:
        self._limits = limits
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_reuseconn.append(_note_reuse)
        self._pooled = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S), [tracing])
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True), [])
        self._whole_s = aiohttp.ClientTimeout(sock_connect=timeouts.connect_s, sock_read=timeouts.answer_s)
        self._stream_s = aiohttp.ClientTimeout(sock_connect=timeouts.connect_s, sock_read=timeouts.stream_s)

    async def close(self) -> None:
        """Closes all connections."""
        await self._pooled.close()
        await self._fresh.close()

    async def start(self, backend: Backend, call: Call) -> Answer:
        """Sends a request and waits for the first bytes of its answer; of one that is no stream, for all of it.

        A connection that the backend closed while it was idle may break under the request: then it is sent again, on a
        new connection.

        Raises:
          BackendError: the backend failed, and nothing of its answer has been seen by anybody.
        """
        trace = SimpleNamespace(reused=False)
        try:
            async with asyncio.timeout(None) as wait:
                backend.waits.add(wait)
                try:
                    return await self._start(self._pooled, backend, call, trace)
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                    if not trace.reused or isinstance(error, aiohttp.ClientConnectorError):
                        raise
                    return await self._start(self._fresh, backend, call, trace)
                finally:
                    backend.waits.discard(wait)
        except aiohttp.ClientConnectorError as error:
            raise BackendError("connect") from error
        except aiohttp.ConnectionTimeoutError as error:
            raise BackendError("connect") from error
        except TimeoutError as error:
            raise BackendError("down" if wait.expired() else "timeout") from error
        except (aiohttp.ClientError, OSError) as error:
            raise BackendError("closed") from error

    async def _start(
        self, session: aiohttp.ClientSession, backend: Backend, call: Call, trace: SimpleNamespace
    ) -> Answer:
        headers = call.headers
        if backend.key is not None:
            headers = headers.copy()
            headers["Authorization"] = f"Bearer {backend.key}"
        response = await session.request(
            call.method,
            URL(backend.config.url + call.target, encoded=True),
            data=call.body if call.body or call.method == "POST" else None,
            headers=headers,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
            allow_redirects=False,
            ssl=backend.tls,
            timeout=self._stream_s if call.streamed else self._whole_s,
            trace_request_ctx=trace,
        )
        keep = False
        try:
            answer = await self._beginning(response)
            if answer.status in FAULTY or answer.status in BUSY:
                raise BackendError(f"http-{answer.status}", answer)
            keep = answer.stream is not None
            return answer
        finally:
            if not keep:
                # Back to the pool if it has been read to its end, closed if not.
                response.release() if response.content.at_eof() else response.close()

    async def _beginning(self, response: aiohttp.ClientResponse) -> Answer:
        headers = CIMultiDict(response.headers)
        if response.status == 200 and response.headers.get("Content-Type", "").lower().startswith(EVENT_STREAM):
            first = await response.content.readany()
            return Answer(response.status, headers, first, response)
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > self._limits.answer_bytes:
                raise BackendError("too-large")
        return Answer(response.status, headers, bytes(body))


def _session(connector: aiohttp.TCPConnector, tracing: list[aiohttp.TraceConfig]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trace_configs=tracing
    )


async def _note_reuse(session: aiohttp.ClientSession, context: SimpleNamespace, params: object) -> None:
    context.trace_request_ctx.reused = True
