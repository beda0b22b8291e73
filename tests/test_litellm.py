"""The strategy within a real LiteLLM router, in front of fake vLLM servers; skipped where LiteLLM is not installed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fake_vllm import MODEL, FakeVllm
from jaxroute.errors import InputError

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install 'jaxroute[litellm]'")

from jaxroute.litellm import JaxrouteStrategy  # noqa: E402
from jaxroute.serve.config import Limits, Timeouts, Watching  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")
"""LiteLLM's own warnings are not ours to mend."""

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a few words"}]}


def deployment(server: FakeVllm, name: str, model: str = "m", **params: Any) -> dict[str, Any]:
    where = {"model": f"openai/{MODEL}", "api_base": f"{server.url}/v1", "api_key": "none", **params}
    return {"model_name": model, "litellm_params": where, "model_info": {"id": name}}


@asynccontextmanager
async def routing(
    servers: list[FakeVllm], models: str = "mmmm", **options: Any
) -> AsyncIterator[tuple[Any, JaxrouteStrategy]]:
    for server in servers:
        await server.start()
    listed = [
        deployment(server, f"server-{number}", model)
        for number, (server, model) in enumerate(zip(servers, models, strict=False))
    ]
    router = litellm.Router(model_list=listed, num_retries=2, retry_after=0, disable_cooldowns=True)
    watching = Watching(health_s=0.1, scrape_s=0.05)
    values = {"policy": "round-robin", "predictor": "none", "watching": watching, **options}
    strategy = JaxrouteStrategy(router, **values)
    try:
        yield router, strategy
    finally:
        await strategy.close()
        assert strategy not in litellm.callbacks
        for server in servers:
            await server.stop()


async def until(condition: Any, seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """One for all tests: what tells of requests' ends belongs to the first loop that LiteLLM meets."""
    with asyncio.Runner() as runner:
        yield runner


def in_flight(strategy: JaxrouteStrategy) -> list[int]:
    return [each.in_flight for each in strategy._core.dispatcher.status()]


def test_requests_go_where_the_core_says_and_their_ends_are_heard_of(loop: asyncio.Runner) -> None:
    async def test() -> None:
        servers = [FakeVllm() for _ in range(3)]
        async with routing(servers) as (router, strategy):
            replies = await asyncio.gather(*(router.acompletion(**ASK, max_tokens=3) for _ in range(6)))
            assert [reply.usage.completion_tokens for reply in replies] == [3] * 6
            assert [len(server.bodies) for server in servers] == [2, 2, 2]
            counts = strategy._core.dispatcher.brain.counts
            await until(lambda: counts["ended finished"] == 6)
            assert in_flight(strategy) == [0, 0, 0]

    loop.run(asyncio.wait_for(test(), 60))


def test_a_stream_counts_until_its_end(loop: asyncio.Runner) -> None:
    async def test() -> None:
        async with routing([FakeVllm(speed=1)]) as (router, strategy):
            stream = await router.acompletion(**ASK, max_tokens=30, stream=True)
            pieces = [piece async for piece in stream if in_flight(strategy) == [1]]
            assert len(pieces) >= 30
            await until(lambda: in_flight(strategy) == [0])
            assert strategy._core.dispatcher.brain.counts["ended finished"] == 1

    loop.run(asyncio.wait_for(test(), 60))


def test_a_failing_server_is_left_for_another(loop: asyncio.Runner) -> None:
    async def test() -> None:
        servers = [FakeVllm() for _ in range(2)]
        async with routing(servers) as (router, strategy):
            servers[0].break_with("500")
            replies = [await router.acompletion(**ASK, max_tokens=2) for _ in range(4)]
            assert len(replies) == 4
            assert len(servers[1].bodies) == 4
            await until(lambda: in_flight(strategy) == [0, 0])

    loop.run(asyncio.wait_for(test(), 60))


def test_only_deployments_of_the_model_are_chosen(loop: asyncio.Runner) -> None:
    async def test() -> None:
        servers = [FakeVllm() for _ in range(3)]
        async with routing(servers, "mxm") as (router, _):
            for _ in range(4):
                await router.acompletion(**ASK, max_tokens=2)
            assert [len(server.bodies) for server in servers] == [2, 0, 2]

    loop.run(asyncio.wait_for(test(), 60))


def test_without_a_server_there_is_an_error_of_litellm(loop: asyncio.Runner) -> None:
    async def test() -> None:
        server = FakeVllm()
        async with routing([server]) as (router, strategy):
            server.healthy = False
            with pytest.raises(litellm.ServiceUnavailableError, match="no server is available"):
                await router.acompletion(**ASK, max_tokens=2)
            assert in_flight(strategy) == [0]

    loop.run(asyncio.wait_for(test(), 60))


def test_a_stream_that_is_left_is_forgotten_in_time(loop: asyncio.Runner) -> None:
    async def test() -> None:
        async with routing([FakeVllm(speed=1)], timeouts=Timeouts(answer_s=0.5), limits=Limits()) as (router, strategy):
            stream = await router.acompletion(**ASK, max_tokens=500, stream=True)
            async for _ in stream:
                break
            del stream
            await until(lambda: in_flight(strategy) == [0])
            assert strategy._core.dispatcher.brain.counts["ended expired"] == 1

    loop.run(asyncio.wait_for(test(), 60))


def test_a_deployment_without_an_address_is_refused() -> None:
    where = {"model": "openai/x", "api_key": "none"}
    router = litellm.Router(model_list=[{"model_name": "m", "litellm_params": where, "model_info": {"id": "a"}}])
    with pytest.raises(InputError, match="deployment a: has no api_base"):
        JaxrouteStrategy(router)


def test_a_call_without_an_event_loop_is_refused() -> None:
    router = litellm.Router(model_list=[deployment(FakeVllm(port=1), "a")])
    strategy = JaxrouteStrategy(router, policy="round-robin", predictor="none")
    litellm.callbacks.remove(strategy)
    with pytest.raises(InputError, match="acompletion"):
        strategy.get_available_deployment("m")
