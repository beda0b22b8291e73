"""OpenAI's own Python client, unchanged, against the router."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from fake_vllm import MODEL, FakeVllm
from jaxroute.serve.config import BackendConfig, Limits
from serve.harness import Service, config_of, service, until

CHAT: list[Any] = [{"role": "user", "content": "Say a few words, in French if you like: é"}]


@asynccontextmanager
async def talking(s: Service, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{s.url}/v1", **{"api_key": "any", "max_retries": 0, **options}) as client:
        yield client


async def test_completions_whole_and_streamed() -> None:
    async with service(2) as s, talking(s) as client:
        whole = await client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=6)
        assert whole.choices[0].text == FakeVllm.words(0, 6)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        stream = await client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=6, stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
        assert len(pieces) == 6
        assert "".join(pieces) == FakeVllm.words(0, 6)


async def test_chat_whole_and_streamed_with_its_usage_at_the_end() -> None:
    async with service(2) as s, talking(s) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=9)
        assert whole.choices[0].message.content == FakeVllm.words(0, 9)
        stream = await client.chat.completions.create(
            model=MODEL, messages=CHAT, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == FakeVllm.words(
            0, 9
        )
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 9


async def test_a_client_without_asyncio_sees_the_same() -> None:
    async with service(1) as s:

        def ask() -> str:
            with OpenAI(base_url=f"{s.url}/v1", api_key="any", max_retries=0) as client:
                stream = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=5, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

        assert await asyncio.to_thread(ask) == FakeVllm.words(0, 5)


async def test_the_list_of_models_is_that_of_all_servers() -> None:
    async with service([FakeVllm(), FakeVllm(model="other")]) as s, talking(s) as client:
        assert [model.id async for model in client.models.list()] == [MODEL, "other"]


async def test_raw_answers_name_request_and_server() -> None:
    async with service(1) as s, talking(s) as client:
        answer = await client.completions.with_raw_response.create(
            model=MODEL, prompt="x", max_tokens=1, extra_headers={"X-Request-Id": "mine-1"}
        )
        assert answer.headers["X-Jaxroute-Backend"] == "server-0"
        assert answer.request_id == "mine-1"


async def test_a_wrong_key_and_a_bad_body_are_the_clients_own_errors(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("right\n")
    async with service(1, keys_file=tmp_path / "keys") as s:
        async with talking(s, api_key="wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await client.completions.create(model=MODEL, prompt="x")
            assert refused.value.code == "invalid_api_key"
        async with talking(s, api_key="right") as client:
            assert (await client.completions.create(model=MODEL, prompt="x", max_tokens=1)).choices
            with pytest.raises(openai.BadRequestError) as bad:
                await client.completions.create(model=MODEL, prompt="x", extra_body={"stream": "maybe"})
            assert bad.value.code == "invalid_body"
            with pytest.raises(openai.NotFoundError):
                await client.get("/../admin", cast_to=object)


async def full(s: Service) -> list[asyncio.Task[Any]]:
    """Fills the one place at the one server, and the one in the queue."""
    tasks = []
    async with asyncio.timeout(10):
        for there in (lambda: s.router.dispatcher.status()[0].in_flight == 1, lambda: s.router.dispatcher.queue_length):
            tasks.append(asyncio.create_task(s.post({"model": MODEL, "prompt": "x", "max_tokens": 1000})))
            await until(there)
    return tasks


async def test_a_full_queue_is_a_rate_limit_which_the_client_waits_out() -> None:
    async with FakeVllm(speed=1) as server:
        one = BackendConfig(server.url, name="server-0", max_in_flight=1)
        async with service([], backends=(one,), limits=Limits(queue=1, wait_s=60)) as s:
            tasks = await full(s)
            async with talking(s) as client:
                with pytest.raises(openai.RateLimitError) as refused:
                    await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
                assert refused.value.code == "queue-full"
                assert int(refused.value.response.headers["Retry-After"]) >= 1
            async with talking(s, max_retries=8) as client:
                patient = asyncio.create_task(client.completions.create(model=MODEL, prompt="x", max_tokens=2))
                await until(lambda: s.router.dispatcher.brain.counts["refused queue-full"] >= 2)
                for task in tasks:
                    task.cancel()
                assert (await patient).choices[0].text == FakeVllm.words(0, 2)


async def test_no_server_is_a_server_error_until_one_is_back_within_the_clients_own_retries() -> None:
    server = FakeVllm()
    async with server:
        url = server.url
        await server.stop()
        async with service([], backends=config_of([url]).backends) as s:
            async with talking(s) as client:
                with pytest.raises(openai.InternalServerError) as refused:
                    await client.chat.completions.create(model=MODEL, messages=CHAT)
                assert (refused.value.status_code, refused.value.code) == (503, "no-backend")
            async with talking(s, max_retries=8) as client:
                patient = asyncio.create_task(client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=3))
                await asyncio.sleep(0.2)
                await server.start()
                assert (await patient).choices[0].message.content == FakeVllm.words(0, 3)


async def test_a_server_that_dies_in_mid_stream_is_an_error_of_the_stream_not_its_end() -> None:
    async with service(1) as s, talking(s) as client:
        s.servers[0].break_with("cut")
        seen = []
        with pytest.raises(openai.APIError) as cut:
            async for chunk in await client.completions.create(model=MODEL, prompt="x", max_tokens=10, stream=True):
                seen.append(chunk.choices[0].text)  # noqa: PERF401 - those before the error count
        assert 0 < len(seen) < 10
        assert "".join(seen) == FakeVllm.words(0, len(seen))
        assert cut.value.type == "upstream_error"


async def test_a_server_that_breaks_before_the_first_byte_is_not_seen_at_all() -> None:
    async with service(2) as s, talking(s) as client:
        s.servers[0].break_with("500")
        for _ in range(4):
            answer = await client.completions.create(model=MODEL, prompt="x", max_tokens=2)
            assert answer.choices[0].text == FakeVllm.words(0, 2)


async def test_a_stream_that_is_closed_early_ends_at_the_server() -> None:
    async with service([FakeVllm(speed=1)]) as s, talking(s) as client:
        stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=10_000, stream=True)
        async for _ in stream:
            break
        assert s.servers[0].engine.running
        await stream.close()
        await until(lambda: not s.servers[0].engine.running)
        assert await s.in_flight() == 0
