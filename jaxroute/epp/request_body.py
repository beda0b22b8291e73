"""The body of a request as Envoy sends it: not at all, whole, or in pieces that go on after the decision."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from jaxroute.epp import protocol


class EndedError(Exception):
    """Nothing more is to be said: the request has been refused, or Envoy has ended it."""


class TooLargeError(Exception):
    """The body, or all bodies under way together (`together`), are too large."""

    def __init__(self, *, together: bool) -> None:
        super().__init__()
        self.together = together


@dataclasses.dataclass
class Held:
    """Bytes of all bodies that wait for a decision.

    Attributes:
      each, together: the most, of one body and of all.
      bytes: now.
    """

    each: int
    together: int
    bytes: int = 0


class Share:
    """What one body has of them, within a `with`."""

    def __init__(self, held: Held) -> None:
        self._held, self._bytes = held, 0

    def add(self, count: int) -> None:
        """So many more.

        Raises:
          TooLargeError: they are too many.
        """
        self._bytes += count
        self._held.bytes += count
        if self._bytes > self._held.each:
            raise TooLargeError(together=False)
        if self._held.bytes > self._held.together:
            raise TooLargeError(together=True)

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.bytes -= self._bytes


@dataclasses.dataclass
class Body:
    """What there is of a body when its request is placed.

    Attributes:
      data: its bytes.
      is_whole: whether that is all of it.
      decides_on: the message whose answer says where the request goes.
      rest: answers that follow it.
    """

    data: bytes = b""
    is_whole: bool = True
    decides_on: str = "request_headers"
    rest: list[Any] = dataclasses.field(default_factory=list)


async def receive(
    first: Any, read: Callable[[], Awaitable[Any]], write: Callable[[Any], Awaitable[None]], share: Share
) -> Body:
    """Reads the body in the way that Envoy has announced.

    Args:
      first: the message with the headers.
      read, write: take and send messages.
      share: to which the body's bytes are added.

    Raises:
      EndedError: the request has ended.
      TooLargeError: it is too large.
    """
    if first.request_headers.end_of_stream:
        return Body()
    modes = first.protocol_config
    # Envoy before 1.33 does not say; whole bodies are the common case.
    mode = modes.request_body_mode if first.HasField("protocol_config") else protocol.BUFFERED
    early = mode == protocol.STREAMED and modes.send_body_without_waiting_for_header_response
    if mode in (protocol.BUFFERED, protocol.BUFFERED_PARTIAL):
        await write(protocol.CONTINUE["request_headers"])
        message = await _next(read)
        if message.WhichOneof("request") != "request_body":
            raise EndedError
        data = message.request_body.body
        share.add(len(data))
        whole = mode == protocol.BUFFERED or message.request_body.end_of_stream
        return Body(data, whole, "request_body")
    if mode == protocol.FULL_DUPLEX or early:
        return await _in_pieces(read, share, sent_back=mode == protocol.FULL_DUPLEX)
    return Body(is_whole=False)


async def _in_pieces(read: Callable[[], Awaitable[Any]], share: Share, *, sent_back: bool) -> Body:
    pieces: list[bytes] = []
    trailers = end = False
    while not end:
        message = await _next(read)
        trailers = message.WhichOneof("request") == "request_trailers"
        if not trailers and message.WhichOneof("request") != "request_body":
            raise EndedError
        if not trailers:
            pieces.append(message.request_body.body)
            share.add(len(pieces[-1]))
        end = trailers or message.request_body.end_of_stream
    data = b"".join(pieces)
    if sent_back:
        rest = list(protocol.passed_on("request_body", data, end=not trailers))
    else:
        rest = [protocol.CONTINUE["request_body"]] * len(pieces)
    if trailers:
        rest.append(protocol.CONTINUE["request_trailers"])
    return Body(data, True, "request_headers", rest)


async def _next(read: Callable[[], Awaitable[Any]]) -> Any:
    message = await read()
    if message is grpc.aio.EOF:
        raise EndedError
    return message
