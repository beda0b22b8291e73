"""Server-sent events as they pass: cut at their ends, and counted, without being parsed."""

from __future__ import annotations

import json
import re

COMPLETION_TOKENS = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,9})')
PROMPT_TOKENS = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,9})')
"""Within a JSON text a quote is escaped, so neither can be part of a generated text."""

NO_TEXT = re.compile(rb'"choices"\s*:\s*\[\s*\]|"(?:content|text|delta)"\s*:\s*(?:""|\{\s*\})|"type"\s*:\s*"response\.')
"""An event without a token: that of the usage alone, that of the role, the last one of some servers."""

RESPONSE_DELTA = re.compile(rb'"type"\s*:\s*"response\.[a-z_.]*delta"')

END = re.compile(rb"\r?\n\r?\n")

MOST_TAIL = 2**20
"""Bytes of an event without an end, beyond which it passes as it is."""


class Events:
    """Cuts a stream of bytes behind its last whole event, so that what the client has is whole events at any time."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        """All whole events that there are by now, in the very bytes in which they came; the rest is kept."""
        if self._tail:
            data = self._tail + data
            self._tail = b""
        # vLLM sends whole events, so mostly there is nothing to search.
        if data.endswith(b"\n\n"):
            return data
        end = max((at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := data.rfind(mark)) >= 0), default=0)
        if len(data) - end > MOST_TAIL:
            return data
        self._tail = data[end:]
        return data[:end]

    def rest(self) -> bytes:
        """What is left when the stream ends; nothing, where its last event is whole."""
        rest, self._tail = self._tail, b""
        return rest


class Counter:
    """Counts output tokens: by the usage that an event states, or one for each event with a text.

    Attributes:
      tokens: output tokens so far.
      prompt_tokens: of the prompt, if the server said.
      stated: whether the server said how many output tokens there are.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.prompt_tokens: int | None = None
        self.stated = False

    def see(self, events: bytes) -> int:
        """Tokens in whole events, further ones than were counted before."""
        before = self.tokens
        for event in END.split(events):
            self._see_one(event)
        return max(0, self.tokens - before)

    def _see_one(self, event: bytes) -> None:
        if b"data:" not in event or event.startswith(b"data: [DONE]"):
            return
        usage = usage_of(event)
        if usage is not None:
            self.tokens, self.stated = max(self.tokens, usage[1]) if not self.stated else usage[1], True
            self.prompt_tokens = usage[0] or self.prompt_tokens
        elif NO_TEXT.search(event) is None or RESPONSE_DELTA.search(event) is not None:
            self.tokens += 1


def usage_of(data: bytes) -> tuple[int, int] | None:
    """Prompt and output tokens that an answer or an event states; the last ones, where there are several."""
    if b"_tokens" not in data:
        return None
    output = COMPLETION_TOKENS.findall(data)
    if not output:
        return None
    prompt = PROMPT_TOKENS.findall(data)
    return int(prompt[-1]) if prompt else 0, int(output[-1])


def error_event(message: str, code: str) -> bytes:
    """What ends a stream that cannot go on, in OpenAI's words; no `[DONE]` follows, for it is not done."""
    error = {"message": message, "type": "upstream_error", "param": None, "code": code}
    return f"data: {json.dumps({'error': error})}\n\n".encode()
