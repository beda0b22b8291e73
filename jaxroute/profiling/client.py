"""Requests of exact size to one server, and when their tokens came."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import numpy as np

from jaxroute.errors import InputError, first_line
from jaxroute.live.prompts import random_prompts
from jaxroute.serve.sse import Events, usage_of

QUOTED = 300
"""Characters of a server's error that are passed on."""

KEY_REMEDY = "name the variable that holds its API key with --api-key-env"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer; times are seconds of `time.perf_counter`.

    Attributes:
      prompt_tokens, output_tokens: as the server counts them.
      sent_s: when the request was handed over.
      token_s: [output tokens] float64, when each token came; NaN where it came in one piece with the next one. All but
        the last are NaN where the answer was not streamed.
    """

    prompt_tokens: int
    output_tokens: int
    sent_s: float
    token_s: np.ndarray

    @property
    def end_s(self) -> float:
        """When the last token came."""
        return float(self.token_s[-1])

    @property
    def ttft_s(self) -> float:
        """From sending to the first token that came by itself, seconds."""
        return float(self.token_s[0] - self.sent_s)


class Ticks:
    """Tokens of a stream while they come; one may wait for a number of them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ended = False
        self._came = asyncio.Event()

    def add(self, now: float, tokens: int) -> None:
        """`tokens` of them are there by now."""
        fresh = tokens - len(self.times)
        if fresh > 0:
            self.times += [np.nan] * (fresh - 1) + [now]
            self._came.set()

    def end(self) -> None:
        """No further one comes."""
        self.ended = True
        self._came.set()

    async def reach(self, tokens: int) -> bool:
        """Waits for that many; whether they came."""
        while len(self.times) < tokens and not self.ended:
            self._came.clear()
            await self._came.wait()
        return len(self.times) >= tokens


class Server:
    """A server that is measured.

    Attributes:
      url: its root, without `/v1`.
      model: what requests call the model; set once it is known.
      asked_prompt_tokens, asked_output_tokens: of all requests so far, as the server counted them.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str | None = None) -> None:
        self.url, self.model = url, ""
        self.asked_prompt_tokens = self.asked_output_tokens = 0
        self._session = session
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def get(self, path: str) -> str | None:
        """The text at a path; None where the server knows no such path.

        Raises:
          InputError: it cannot be reached, refuses the key, or fails.
        """
        place = f"{self.url}{path}"
        try:
            async with self._session.get(place, headers=self._headers) as response:
                text = await response.text(errors="replace")
                if response.status == 404:
                    return None
                self._check(response.status, text, place)
                return text
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            what = first_line(error) if str(error) else type(error).__name__
            raise InputError(f"{self.url}: cannot be reached ({what}); give the address of a running server") from error

    async def ask(self, prompt_tokens: int, output_tokens: int, ticks: Ticks | None = None) -> Answer:
        """Sends a prompt of random tokens and has exactly that many made; streamed where `ticks` is there to see it.

        Raises:
          InputError: the server fails, or makes another number of tokens.
        """
        body = json.dumps(_body(self.model, prompt_tokens, output_tokens, streamed=ticks is not None)).encode()
        headers = {"Content-Type": "application/json", **self._headers}
        place = f"{self.url}/v1/completions"
        sent_s = time.perf_counter()
        try:
            async with self._session.post(place, data=body, headers=headers) as response:
                if response.status != 200:
                    self._check(response.status, await response.text(errors="replace"), place)
                if ticks is None:
                    return self._whole(await response.read(), sent_s, output_tokens)
                return await self._streamed(response, sent_s, output_tokens, ticks)
        except (aiohttp.ClientError, TimeoutError) as error:
            what = first_line(error) if str(error) else type(error).__name__
            raise InputError(f"{self.url}: a request failed ({what}); see the server's log") from error
        finally:
            if ticks is not None:
                ticks.end()

    def _whole(self, body: bytes, sent_s: float, output_tokens: int) -> Answer:
        now = time.perf_counter()
        token_s = np.full(output_tokens, np.nan)
        token_s[-1] = now
        return self._answer(usage_of(body), sent_s, token_s)

    async def _streamed(
        self, response: aiohttp.ClientResponse, sent_s: float, output_tokens: int, ticks: Ticks
    ) -> Answer:
        events, used = Events(), None
        async for piece in response.content.iter_any():
            now = time.perf_counter()
            # The last event of a piece states all tokens so far.
            stated = usage_of(events.feed(piece))
            if stated is not None:
                used = stated
                ticks.add(now, stated[1])
        return self._answer(used, sent_s, np.asarray(ticks.times) if ticks.times else np.full(output_tokens, np.nan))

    def _answer(self, used: tuple[int, int] | None, sent_s: float, token_s: np.ndarray) -> Answer:
        if used is None or used[1] != len(token_s) or not used[0]:
            what = "states no usage" if used is None else f"made {used[1]} tokens of {len(token_s)}"
            raise InputError(
                f"{self.url}: {what}; it must honour min_tokens, ignore_eos and stream_options.continuous_usage_stats, "
                "as vLLM does"
            )
        self.asked_prompt_tokens += used[0]
        self.asked_output_tokens += used[1]
        return Answer(used[0], used[1], sent_s, token_s)

    def _check(self, status: int, text: str, place: str) -> None:
        if status in (401, 403):
            raise InputError(f"{place}: answers {status}, the key is wrong or missing; {KEY_REMEDY}")
        if status == 404:
            raise InputError(f"{place}: answers 404 ({_said(text)}); give the address of a vLLM server and its model")
        if status != 200:
            raise InputError(f"{place}: answers {status} ({_said(text)}); see the server's log")


def _body(model: str, prompt_tokens: int, output_tokens: int, *, streamed: bool) -> Mapping[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        # Ids instead of a text: no tokenizer has a say in how many there are, and no prefix cache knows them.
        "prompt": random_prompts([prompt_tokens])[0],
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    if streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    return body


def _said(text: str) -> str:
    try:
        data = json.loads(text)
        error = data.get("error", data)
        text = str(error.get("message", text) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:QUOTED] or "nothing more"
