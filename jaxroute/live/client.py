"""Streamed completions of an OpenAI-compatible server: how many tokens, and when each of them came."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence

import aiohttp
import numpy as np

from jaxroute.errors import InputError
from jaxroute.serve.sse import Events, usage_of

KEEP_ALIVE_S = 2.0
"""That an idle connection is kept: less than the 5 s after which vLLM closes it."""

CONNECT_S, SILENT_S = 10.0, 600.0
"""Seconds to connect, and between two pieces of a stream; in overload the first one may be minutes away."""

QUOTED = 300
"""Bytes of a server's error that are passed on."""


class LiveError(InputError):
    """A server did not do what it was asked for; the message names it and says how to go on."""


@dataclasses.dataclass(frozen=True)
class Completion:
    """One streamed answer; times are seconds of `time.perf_counter`, which all processes of a machine share.

    Attributes:
      sent_s: when the request was handed over.
      token_s: [output tokens] float64, when each token came; tokens of one chunk came together. Where the server does
        not say how many a chunk has, the first and the last are right, and those in between as near as can be.
      prompt_tokens: of the prompt, as the server counts.
      backend: the server that answered, by its name at `jaxroute serve`; empty where no such router was in between.
    """

    sent_s: float
    token_s: np.ndarray
    prompt_tokens: int
    backend: str = ""

    @property
    def output_tokens(self) -> int:
        """Tokens that came."""
        return len(self.token_s)

    @property
    def ttft_s(self) -> float:
        """From sending to the first token, seconds."""
        return float(self.token_s[0] - self.sent_s)

    @property
    def e2e_s(self) -> float:
        """From sending to the last token, seconds."""
        return float(self.token_s[-1] - self.sent_s)


def open_session() -> aiohttp.ClientSession:
    """A session without a limit of connections, for load; within an event loop."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)


def completion_body(model: str, prompt: Sequence[int], output_tokens: int) -> bytes:
    """The JSON of a request for exactly `output_tokens` tokens, greedy, whose stream says how many there are so far."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        # Under load one chunk carries several tokens: they are counted by what the server states.
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    return json.dumps(body).encode()


async def stream_completion(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    output_tokens: int,
    headers: Mapping[str, str] | None = None,
) -> Completion:
    """Sends one request and reads its stream.

    Args:
      session: of `open_session`.
      url: the server's root, without `/v1`.
      body: of `completion_body`.
      output_tokens: that were asked for.
      headers: further ones.

    Raises:
      LiveError: no connection, an error, a stream that breaks off, or another number of tokens.
    """
    target = f"{url}/v1/completions"
    sent = {"Content-Type": "application/json", **(headers or {})}
    for is_last in (False, True):
        sent_s = time.perf_counter()
        try:
            async with session.post(target, data=body, headers=sent) as response:
                return await _read(response, url, sent_s, output_tokens)
        except aiohttp.ServerDisconnectedError as error:
            # The server closed an idle connection at this very moment: the request has reached nobody.
            if is_last:
                raise LiveError(f"{url}: closes the connection before it answers ({error}); see its log") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            what = str(error) or type(error).__name__
            raise LiveError(
                f"{url}: the request failed ({what}); is the server up, and what does its log say?"
            ) from error
    raise AssertionError


async def _read(response: aiohttp.ClientResponse, url: str, sent_s: float, output_tokens: int) -> Completion:
    if response.status != 200:
        said = (await response.read())[:QUOTED].decode(errors="replace")
        raise LiveError(f"{url}: answers {response.status} ({said}); see the server's log")
    events, prompt_tokens = Events(), 0
    times: list[float] = []
    async for piece in response.content.iter_any():
        now = time.perf_counter()
        whole = events.feed(piece)
        # The last event states all tokens so far. A router may have dropped the wish for that from the request: then
        # every event is a token until the last one states them all, and those that shared an event came at the end.
        used = usage_of(whole)
        if used is None:
            times += [now] * _texts(whole)
        else:
            prompt_tokens = used[0]
            del times[used[1] :]
            times += [now] * (used[1] - len(times))
    if len(times) != output_tokens:
        raise LiveError(
            f"{url}: {len(times)} of {output_tokens} tokens came; the server must honour min_tokens, ignore_eos and "
            "stream_options.continuous_usage_stats, as vLLM does"
        )
    return Completion(sent_s, np.asarray(times), prompt_tokens, response.headers.get("X-Jaxroute-Backend", ""))


def _texts(events: bytes) -> int:
    """Events other than `[DONE]`; in JSON a line break is escaped, so no text looks like one."""
    return events.startswith(b"data: {") + events.count(b"\ndata: {")
