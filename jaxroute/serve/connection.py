"""One HTTP/1.1 connection to a backend, one request at a time: the bytes in, httptools between, the pieces out.

A client with more to offer took three times as long for a request that a router passes on.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast

import httptools
from multidict import CIMultiDict

HEADER_BYTES = 2**16
"""Of an answer's headers, beyond which it is garbage."""

UNREAD_BYTES = 2**18
"""Of a body that nobody has taken yet, beyond which the backend has to wait."""


class ConnectionLostError(OSError):
    """The connection ended within an answer, or what came is no answer."""


class SilentError(TimeoutError):
    """Nothing came for too long."""


class GivenUpError(ConnectionLostError):
    """Somebody said not to wait any longer."""


class Connection(asyncio.Protocol):
    """A connection.

    Attributes:
      used: answers that were read to their end.
      untouched: whether nothing has come in answer to the present request.
      idle_since: when the last answer ended, `time.monotonic` seconds.
      status, headers: of the present answer, once `begin` has returned.
    """

    def __init__(self) -> None:
        self.used = 0
        self.untouched = True
        self.idle_since = 0.0
        self.status = 0
        self.headers: CIMultiDict[str] = CIMultiDict()
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: Exception | None = None
        self._pieces: list[bytes] = []
        self._unread = self._header_bytes = 0
        self._paused = self._begun = self._whole = self._keeps = self._sized = False
        self._heard = 0.0
        self._busy = self._no_body = False

    # What the relay and the upstream use.

    @property
    def is_idle(self) -> bool:
        """Whether it is open and can take a request."""
        return not self._busy and self._error is None and self._transport is not None

    @property
    def at_end(self) -> bool:
        """Whether the answer has been read to its end."""
        return self._whole and not self._pieces

    def send(self, head: bytes, body: bytes, silence_s: float, *, no_body: bool = False) -> None:
        """Sends a request.

        Args:
          head: its first line and headers.
          body: its body.
          silence_s: seconds without a byte after which reading fails.
          no_body: whether the answer has none, whatever its headers say (`HEAD`).
        """
        assert self.is_idle and self._transport is not None
        self.untouched, self.status, self.headers = True, 0, CIMultiDict()
        self._begun = self._whole = self._keeps = self._sized = False
        self._header_bytes, self._busy, self._no_body = 0, True, no_body
        self._heard, self._silence_s = self._loop.time(), silence_s
        self._timer = self._loop.call_later(silence_s, self._check_silence)
        self._transport.write(head + body)

    def allow_silence(self, silence_s: float) -> None:
        """From now on, reading fails after so many seconds without a byte."""
        self._silence_s = silence_s
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._loop.call_later(silence_s, self._check_silence)

    async def begin(self) -> None:
        """Waits for the headers of the answer.

        Raises:
          ConnectionLostError: the connection ended, or what came is no answer.
          SilentError: nothing came for too long.
          GivenUpError: see `give_up`.
        """
        while not self._begun:
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since; nothing at its end. Raises as `begin`."""
        while not self._pieces and not self._whole:
            await self._wait()
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._pieces, self._unread = [], 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._heard = self._loop.time()
            self._transport.resume_reading()
        return data

    def give_up(self) -> None:
        """Whoever waits for the answer waits no longer."""
        self._fail(GivenUpError())

    def release(self) -> bool:
        """The answer is done with; whether the connection can take another request. If not, it is closed."""
        self._stop_timer()
        transport = self._transport
        if (
            self._busy
            and self.at_end
            and self._keeps
            and transport is not None
            and not transport.get_write_buffer_size()
        ):
            self._busy = False
            self.used += 1
            self.idle_since = time.monotonic()
            return True
        self.close()
        return False

    def close(self) -> None:
        """Closes it at once."""
        self._stop_timer()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self.untouched = False
        if not self._busy or self._whole:
            # Nobody asked: an answer that is too long, or a last word before the end.
            self._fail(ConnectionLostError("bytes behind the answer"))
            return
        self._heard = self._loop.time()
        if not self._begun:
            self._header_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(ConnectionLostError(str(error)))
            return
        if not self._begun and self._header_bytes > HEADER_BYTES:
            self._fail(ConnectionLostError("the headers do not end"))
            return
        if self._unread > UNREAD_BYTES and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """The backend sends no more."""
        if self._busy and self._begun and not self._whole and not self._sized:
            self._whole = True
            self._wake()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        self._transport = None
        self._fail(ConnectionLostError(str(error or "closed by the backend")))

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        key = name.decode("latin-1")
        self.headers.add(key, value.decode("utf-8", "surrogateescape"))
        self._sized = self._sized or key.lower() in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        """The headers are there."""
        status = self._parser.get_status_code()
        if status < 200:
            self.headers, self._sized = CIMultiDict(), False
            return
        self.status, self._begun = status, True
        self._keeps = self._parser.should_keep_alive()
        if self._no_body:
            self._whole, self._keeps = True, False

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._whole:
            self._pieces.append(data)
            self._unread += len(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._begun:
            self._whole = True

    # The rest.

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._stop_timer()
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    def _check_silence(self) -> None:
        """One timer for many pieces: it looks when the last one came."""
        rest = self._heard + self._silence_s - self._loop.time()
        # While the reader makes the backend wait, silence is not the backend's fault.
        if self._paused or self._whole:
            rest = self._silence_s
        if rest <= 0:
            self._fail(SilentError())
        else:
            self._timer = self._loop.call_later(rest, self._check_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
