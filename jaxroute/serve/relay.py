"""Passes a stream on: whole events, in the very bytes in which they came, as soon as they are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from jaxroute.serve.sse import Counter, Events, error_event
from jaxroute.serve.upstream import Answer

UNREAD_BYTES = 2**18
"""That a client may leave unread before it has to hurry."""


class ClientGoneError(Exception):
    """The client left, or reads no more."""


class CutError(Exception):
    """The backend died in mid-stream; the client has been told."""


class Relay:
    """One stream.

    Attributes:
      counter: what has passed.
    """

    def __init__(self, request: web.Request, write_s: float, tokens: Callable[[int], None]) -> None:
        """Remembers whom to tell.

        Args:
          request: the client's.
          write_s: seconds that the client may leave the stream unread.
          tokens: called with the further tokens that have passed.
        """
        self._request, self._write_s, self._tokens = request, write_s, tokens
        self.counter = Counter()

    async def run(self, answer: Answer, response: web.StreamResponse) -> None:
        """Passes the stream on to its end.

        Raises:
          ClientGoneError: the client left.
          CutError: the stream is not complete.
        """
        assert answer.stream is not None
        upstream, events = answer.stream, Events()
        try:
            await self._write(response, None)
            piece = answer.body
            while piece and not upstream.at_end:
                if whole := events.feed(piece):
                    await self._write(response, whole)
                piece = await upstream.read()
            # Its last bytes and its end in one go.
            await self._write(response, events.feed(piece) + events.rest(), last=True)
        except (TimeoutError, OSError) as error:
            stalled = isinstance(error, TimeoutError)
            code = "backend_stalled" if stalled else "backend_lost"
            text = "the backend went silent" if stalled else "the connection to the backend was lost"
            event = error_event(f"{text}; the answer is not complete", code)
            await self._write(response, event, count=False, last=True)
            raise CutError(code) from error
        finally:
            upstream.close()

    async def _write(
        self, response: web.StreamResponse, data: bytes | None, *, count: bool = True, last: bool = False
    ) -> None:
        """Writes, or where there is no data, sends the headers."""
        try:
            if data is None:
                await response.prepare(self._request)
                return
            transport = self._request.transport
            if transport is None:
                raise ClientGoneError
            write = response.write_eof if last else response.write
            if transport.get_write_buffer_size() > UNREAD_BYTES:
                async with asyncio.timeout(self._write_s):
                    await write(data)
            else:
                await write(data)
        except (OSError, TimeoutError) as error:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ClientGoneError from error
        if count and (tokens := self.counter.see(data)):
            self._tokens(tokens)
