"""A live run on real sockets, recorded: the router's decision log, and what its brain heard while it wrote it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import numpy as np

from fake_vllm import FakeVllm
from jaxroute.serve.config import Watching
from jaxroute.serve.types import Incoming, Metrics, Placement
from serve.harness import Service, completion, service, until

SERVERS = 3


@dataclasses.dataclass(frozen=True)
class Heard:
    """One thing that the brain was told, in the order of telling.

    Attributes:
      what: `arrive`, `placed`, `tokens`, `ended` or `scraped`.
      now_s: when, by the router's clock.
      id: of the request, or the name of the server.
      count: of tokens.
      request: that arrives.
      placement: of the one that was placed.
      metrics: that were read.
    """

    what: str
    now_s: float
    id: str
    count: int = 0
    request: Incoming | None = None
    placement: Placement | None = None
    metrics: Metrics | None = None


def listen(brain, heard: list[Heard]) -> None:
    """Notes whatever the brain is told, before it acts on it, and what it decides."""
    told = {name: getattr(brain, name) for name in ("arrive", "tokens", "ended", "scraped")}
    dispatch = brain._dispatch

    def arrive(request, now, exclude=frozenset()):
        heard.append(Heard("arrive", now, request.id, request=request))
        told["arrive"](request, now, exclude)

    def tokens(id, count, now):
        heard.append(Heard("tokens", now, id, count))
        told["tokens"](id, count, now)

    def ended(id, now, outcome, output_tokens=None):
        heard.append(Heard("ended", now, id))
        return told["ended"](id, now, outcome, output_tokens)

    def scraped(name, metrics, now):
        heard.append(Heard("scraped", now, name, metrics=metrics))
        told["scraped"](name, metrics, now)

    def dispatched(placement):
        heard.append(Heard("placed", placement.dispatch_s, placement.request.id, placement=placement))
        dispatch(placement)

    for name, method in {"arrive": arrive, "tokens": tokens, "ended": ended, "scraped": scraped}.items():
        setattr(brain, name, method)
    brain._dispatch = dispatched


async def talk(s: Service, count: int, seed: int) -> list[int]:
    """Clients that come at random and stream answers of random lengths; the statuses that they got."""
    rng = np.random.default_rng(seed)

    async def one(wait_s: float, words: int, tokens: int) -> int:
        await asyncio.sleep(wait_s)
        return (await s.post(completion(tokens, stream=True, prompt="word " * words))).status

    waits = np.cumsum(rng.exponential(0.01, count))
    return list(
        await asyncio.gather(*(one(float(wait), int(rng.integers(5, 300)), int(rng.integers(3, 60))) for wait in waits))
    )


async def record(path: Path, *, count: int = 80, seed: int = 0, policy: str = "default") -> list[Heard]:
    """Runs `count` streamed requests through a router in front of slow servers, its decision log at `path`."""
    profile = "v100-32gb-llama2-7b"
    servers = [FakeVllm(profile=profile, speed=6.0) for _ in range(SERVERS)]
    heard: list[Heard] = []
    # A busy machine must not pass for a server that is down.
    watching = Watching(scrape_s=0.05, health_timeout_s=20)
    async with service(servers, policy=policy, profile=profile, decision_log=path, watching=watching) as s:
        listen(s.router.dispatcher.brain, heard)
        # Until every server has been read while somebody listened.
        await until(lambda: {each.id for each in heard} == {f"server-{number}" for number in range(SERVERS)})
        assert set(await talk(s, count, seed)) == {200}
    return heard


async def record_with_trouble(path: Path) -> None:
    """A few requests of all sorts: streamed and not, one tried twice, one left by its client, one without tokens."""
    async with service(2, decision_log=path) as s:
        for number in range(6):
            await s.post(completion(5 + number, stream=number % 2 == 0), headers={"x-jaxroute-task": "chat"})
        s.servers[0].break_with("503", times=1)
        for number in range(3):
            await s.post(completion(20 + number))
        await s.post({"model": "fake-model", "input": "x"}, "/v1/embeddings")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await s.post(completion(5000, stream=True))
        await until(lambda: all(each.in_flight == 0 for each in s.router.dispatcher.status()))
