"""Fake vLLM servers that run in a thread of their own, for programs that have an event loop of theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from fake_vllm import FakeVllm
from jaxroute.live import fidelity

FEW = 40
"""Requests by which the front end of servers that are none is measured: for what is asserted of it they are enough."""


@pytest.fixture(scope="module", autouse=True)
def _few_probes(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.node.get_closest_marker("live") is None:
            patch.setattr(fidelity, "LOADED_REQUESTS", FEW)
        yield


@pytest.fixture(scope="module")
def serving() -> Iterator[Callable[..., list[FakeVllm]]]:
    """Starts servers; they stop with the last test of a file."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    started: list[FakeVllm] = []

    def call(coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)  # type: ignore[arg-type]

    def start(count: int = 1, **options: object) -> list[FakeVllm]:
        servers = [FakeVllm(**options) for _ in range(count)]  # type: ignore[arg-type]
        for server in servers:
            call(server.start())
            started.append(server)
        return servers

    try:
        yield start
    finally:
        for server in started:
            call(server.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
