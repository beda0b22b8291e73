"""A backend that costs next to nothing: streams of a fixed shape, by a timer, from one process without a framework."""

from __future__ import annotations

import asyncio
import json
import re
import sys

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TOKENS = re.compile(rb'"max_tokens": ?(\d+)')
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n",
)
METRICS = b"""vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_waiting{engine="0"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.1
"""
MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]}).encode()


def event(data: bytes) -> bytes:
    """One event as one chunk of HTTP."""
    text = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(text), text)


TOKEN = event(
    b'{"id":"cmpl-0","object":"text_completion","created":0,"model":"m",'
    b'"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null}]}'
)
DONE = event(b"[DONE]") + b"0\r\n\r\n"


class Light(asyncio.Protocol):
    """One connection; first token after `first_s`, further ones every `gap_s`."""

    def __init__(self, first_s: float, gap_s: float) -> None:
        self._first_s, self._gap_s, self._data = first_s, gap_s, b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end]
            length = LENGTH.search(head)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < whole:
                return
            body, self._data = self._data[end + 4 : whole], self._data[whole:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST"):
            asked = TOKENS.search(body)
            self._loop.call_later(self._first_s, self._token, int(asked[1]) if asked else 8, True)
            return
        kind, text = (b"text/plain", METRICS) if b"/metrics" in head[:64] else (b"application/json", MODELS)
        self._write(HEAD[1] % (kind, len(text)) + text)

    def _token(self, left: int, first: bool) -> None:
        self._write((HEAD[0] if first else b"") + TOKEN + (DONE if left == 1 else b""))
        if left > 1:
            self._loop.call_later(self._gap_s, self._token, left - 1, False)

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


async def serve(ports: list[int], first_s: float, gap_s: float) -> None:
    """Listens on every port until the process is ended."""
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(lambda: Light(first_s, gap_s), "127.0.0.1", port)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[3:]], float(sys.argv[1]), float(sys.argv[2])))
