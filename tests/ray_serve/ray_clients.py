"""Replicas in front of real vLLM servers, to compare Ray Serve routers with; they run in processes of Ray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from ray import serve

from jaxroute.serve.ray import vllm_report


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
      prompt: as text, which Ray's prefix router looks at.
      ids: what the engine gets.
      max_tokens: that it makes.
      told: what the router is told of that, `TOKENS,MOST`.
    """

    prompt: str
    ids: list[int]
    max_tokens: int
    told: str


def read_asked(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `Asked` for the router."""
    return {"prompt": args[0].ids, "max_tokens": args[0].max_tokens, "predicted_tokens": args[0].told}


class EngineClient:
    """A replica in front of one vLLM server, the one of its rank."""

    def __init__(self, urls: Sequence[str], model: str) -> None:
        self.url, self.model = urls[serve.get_replica_context().rank.rank], model
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, asked: Asked) -> str:
        body = {
            "model": self.model,
            "prompt": asked.ids,
            "max_tokens": asked.max_tokens,
            "min_tokens": asked.max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        async with self.session().post(f"{self.url}/v1/completions", json=body) as response:
            response.raise_for_status()
            usage = (await response.json())["usage"]
        assert usage["completion_tokens"] == asked.max_tokens
        return self.url

    async def record_routing_stats(self) -> dict[str, Any]:
        async with self.session().get(f"{self.url}/metrics") as response:
            return vllm_report(await response.text())

    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._session
