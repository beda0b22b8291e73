"""A router in front of fake vLLM servers, all on loopback ports that the system chooses, and clients of it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp

from fake_vllm import MODEL, FakeVllm
from jaxroute.serve.app import Router
from jaxroute.serve.config import BackendConfig, Limits, Listener, ServeConfig, Timeouts, Watching

FAST_WATCHING = Watching(health_s=0.1, health_timeout_s=0.5, health_failures=2, scrape_s=0.05)


@dataclasses.dataclass
class Service:
    """A router that runs, its backends, and a client."""

    router: Router
    servers: list[FakeVllm]
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.router.port}"

    @property
    def admin(self) -> str:
        return f"http://127.0.0.1:{self.router.admin_port}"

    async def post(self, body: object = None, path: str = "/v1/completions", **options: Any) -> Reply:
        if body is not None:
            options["json"] = body
        async with self.client.post(f"{self.url}{path}", **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def get(self, path: str, *, admin: bool = False, **options: Any) -> Reply:
        async with self.client.get(f"{self.admin if admin else self.url}{path}", **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def metrics(self) -> str:
        return (await self.get("/metrics", admin=True)).body.decode()

    async def metric(self, line: str) -> float:
        """The value of one metric, by its name and labels as Prometheus writes them; 0 if it is not there."""
        found = [text for text in (await self.metrics()).splitlines() if text.startswith(f"{line} ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    async def in_flight(self) -> int:
        return sum(each.in_flight for each in self.router.dispatcher.status())


@dataclasses.dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The events of a stream, `[DONE]` as a text."""
        parts = [part for part in self.body.decode().split("\n\n") if part]
        texts = [part.removeprefix("data: ") for part in parts]
        return [text if text == "[DONE]" else json.loads(text) for text in texts]


def completion(
    tokens: int = 4, *, stream: bool = False, prompt: object = "a prompt of a few words", **fields: Any
) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "stream": stream, **fields}


def text_of(events: Sequence[Any]) -> str:
    choices = [event["choices"][0] for event in events if event != "[DONE]" and event.get("choices")]
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def config_of(urls: Sequence[str], **changes: Any) -> ServeConfig:
    values: dict[str, Any] = {
        "backends": tuple(BackendConfig(url, name=f"server-{number}") for number, url in enumerate(urls)),
        "policy": "round-robin",
        "predictor": "none",
        "profile": "h100-80gb-llama31-8b",
        "listen": Listener("127.0.0.1", 0),
        "admin": Listener("127.0.0.1", 0),
        "watching": FAST_WATCHING,
        "limits": Limits(),
        "timeouts": Timeouts(drain_s=5.0),
    }
    return ServeConfig(**{**values, **changes})


@asynccontextmanager
async def service(
    servers: int | Sequence[FakeVllm] = 2,
    *,
    client: dict[str, Any] | None = None,
    read: Callable[[], ServeConfig] | None = None,
    **changes: Any,
) -> AsyncIterator[Service]:
    """Starts servers (that many, or the given ones) and a router in front of them."""
    fleet = [FakeVllm() for _ in range(servers)] if isinstance(servers, int) else list(servers)
    async with AsyncExitStack() as stack:
        for server in fleet:
            await stack.enter_async_context(server)
        router = Router(config_of([server.url for server in fleet], **changes), read)
        await router.start()
        stack.push_async_callback(router.stop)
        session = aiohttp.ClientSession(**(client or {}))
        await stack.enter_async_context(session)
        yield Service(router, fleet, session)


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    """Waits until something is the case."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def raw(port: int, data: bytes, *, wait_s: float = 5.0) -> bytes:
    """Sends bytes and reads until the connection closes or nothing comes any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        answer = b""
        try:
            async with asyncio.timeout(wait_s):
                while piece := await reader.read(65536):
                    answer += piece
        except TimeoutError:
            pass
        return answer
    finally:
        writer.close()
