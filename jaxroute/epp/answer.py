"""What an answer that passes by says of its request: how it ended, and how many tokens it has."""

from __future__ import annotations

from collections.abc import Mapping

from jaxroute.serve.sse import Counter, Events, usage_of
from jaxroute.serve.upstream import EVENT_STREAM

TAIL_BYTES = 2**16
"""Of an answer that is not streamed; its usage stands at the end."""


class Answer:
    """An answer, of which nothing is kept but its tail.

    Attributes:
      status: of HTTP.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        text = headers.get(":status", "")
        self.status = int(text) if text.isdecimal() else 0
        streams = headers.get("content-type", "").lower().startswith(EVENT_STREAM)
        self._events = Events() if streams and self.status == 200 else None
        self._counter = Counter()
        self._tail = b""

    def see(self, data: bytes) -> int:
        """Further output tokens that a piece of the body shows."""
        if self._events is not None:
            return self._counter.see(self._events.feed(data))
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        return 0

    def end(self) -> tuple[int, int | None, bool]:
        """At its end: output tokens, those of the prompt if the server said, whether it said how many there are."""
        if self._events is not None:
            counter = self._counter
            counter.see(self._events.rest())
            return counter.tokens, counter.prompt_tokens, counter.stated
        usage = usage_of(self._tail) if self.status == 200 else None
        return (usage[1], usage[0] or None, True) if usage else (0, None, True)
