"""What passes the proxy, and how."""

from __future__ import annotations

import asyncio
import json
import time

import aiohttp

from fake_vllm import MODEL, FakeVllm
from serve.harness import completion, service, text_of, until


async def test_a_completion_passes_unchanged_and_names_its_backend() -> None:
    async with service(1) as s:
        body = json.dumps(completion(3), indent=3).encode()
        reply = await s.post(data=body, headers={"Content-Type": "application/json"})
        assert reply.status == 200
        assert reply.json["choices"][0]["text"] == FakeVllm.words(0, 3)
        assert reply.json["usage"]["completion_tokens"] == 3
        assert reply.headers["X-Jaxroute-Backend"] == "server-0"
        assert s.servers[0].bodies == [body]


async def test_a_stream_passes_byte_for_byte() -> None:
    async with service(1) as s:
        for path, body in (
            ("/v1/completions", completion(20, stream=True)),
            (
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "hé"}], "max_tokens": 20, "stream": True},
            ),
        ):
            reply = await s.post(body, path)
            async with s.client.post(f"{s.servers[0].url}{path}", json=body) as direct:
                assert reply.body == await direct.read()
            assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert reply.events[-1] == "[DONE]"
            assert text_of(reply.events) == FakeVllm.words(0, 20)


async def test_a_stream_passes_chunk_by_chunk() -> None:
    async with service([FakeVllm(speed=0.3)]) as s:
        async with s.client.post(f"{s.url}/v1/completions", json=completion(8, stream=True)) as response:
            times = [time.monotonic() async for _ in response.content.iter_any()]
        # A step takes some 20 ms here; buffered, all would come at once.
        assert len(times) >= 8
        assert times[-1] - times[0] > 0.1


async def test_many_streams_at_once_are_whole_and_their_own() -> None:
    async with service(3, client={"connector": aiohttp.TCPConnector(limit=0)}) as s:
        lengths = [5 + number % 40 for number in range(150)]
        replies = await asyncio.gather(*(s.post(completion(length, stream=True)) for length in lengths))
        for length, reply in zip(lengths, replies, strict=True):
            assert text_of(reply.events) == FakeVllm.words(0, length)
            assert reply.events[-1] == "[DONE]"
        assert {reply.headers["X-Jaxroute-Backend"] for reply in replies} == {"server-0", "server-1", "server-2"}
        assert await s.in_flight() == 0


async def test_tokens_are_counted_by_usage_where_a_chunk_carries_several() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with service([FakeVllm(tokens_a_chunk=4)]) as s:
        await s.post(completion(10, stream=True, stream_options=options))
        assert await s.metric('jaxroute_output_tokens_total{backend="server-0"}') == 10


async def test_tokens_are_counted_by_chunks_where_there_is_no_usage() -> None:
    async with service(1) as s:
        await s.post(completion(7, stream=True))
        await s.post({"messages": [], "max_tokens": 5, "stream": True}, "/v1/chat/completions")
        assert await s.metric('jaxroute_output_tokens_total{backend="server-0"}') == 12


async def test_the_brain_sees_requests_in_flight_and_their_tokens() -> None:
    async with service([FakeVllm(speed=1)]) as s:
        task = asyncio.create_task(s.post(completion(200, stream=True, prompt="x" * 400)))
        await until(lambda: s.router.dispatcher.status()[0].in_flight_tokens > 105)
        status = s.router.dispatcher.status()[0]
        assert status.in_flight == 1
        assert await s.metric('jaxroute_in_flight_requests{backend="server-0"}') == 1
        task.cancel()
        await until(lambda: s.router.dispatcher.status()[0].in_flight == 0)


async def test_models_are_merged() -> None:
    async with service([FakeVllm(model="a"), FakeVllm(model="b"), FakeVllm(model="a")]) as s:
        reply = await s.get("/v1/models")
        assert [model["id"] for model in reply.json["data"]] == ["a", "b"]


async def test_other_endpoints_pass() -> None:
    async with service(1) as s:
        reply = await s.post({"model": MODEL, "input": "text"}, "/v1/embeddings?x=%20y")
        assert reply.json["data"][0]["embedding"] == [0.5]
        assert s.servers[0].seen[0].rel_url.raw_query_string == "x=%20y"


async def test_the_request_id_is_the_clients_or_a_new_one_at_both_ends() -> None:
    async with service(1) as s:
        reply = await s.post(completion(1), headers={"X-Request-Id": "mine-1"})
        assert reply.headers["X-Request-Id"] == s.servers[0].seen[0].headers["X-Request-Id"] == "mine-1"
        reply = await s.post(completion(1), headers={"X-Request-Id": "no good {}"})
        assert reply.headers["X-Request-Id"] == s.servers[0].seen[1].headers["X-Request-Id"] != "no good {}"


async def test_hop_by_hop_and_routing_headers_do_not_pass() -> None:
    sent = {
        "X-Jaxroute-Backend": "server-1",
        "X-Gateway-Destination-Endpoint": "10.0.0.1:80",
        "X-Data-Parallel-Rank": "3",
        "X-Forwarded-For": "1.2.3.4",
        "Connection": "keep-alive, X-Mine",
        "X-Mine": "1",
        "Te": "trailers",
        "Cookie": "a=b",
        "X-Kept": "yes",
    }
    async with service(1) as s:
        await s.post(completion(1), headers=sent)
        got = s.servers[0].seen[0].headers
        assert got["X-Kept"] == "yes"
        assert got["Host"] == f"127.0.0.1:{s.servers[0].port}"
        for name in set(sent) - {"X-Kept", "Connection"}:
            assert name not in got, name


async def test_a_client_that_leaves_aborts_its_request_at_the_backend() -> None:
    async with service([FakeVllm(speed=0.5)]) as s:
        for stream in (True, False):
            before = s.servers[0].aborted
            task = asyncio.create_task(s.post(completion(2000, stream=stream)))
            await until(lambda: s.servers[0].engine.running)
            task.cancel()
            await until(lambda before=before: s.servers[0].aborted > before, 1.0)
            await until(lambda: s.router.dispatcher.status()[0].in_flight == 0)
        assert await s.metric("jaxroute_client_aborts_total") == 2


async def test_ready_says_whether_a_request_could_go_anywhere() -> None:
    async with service(1) as s:
        assert (await s.get("/ready")).status == 200
        assert (await s.get("/health")).status == 200
        await s.servers[0].stop()
        await asyncio.sleep(0.5)
        assert (await s.get("/ready")).status == 503
        assert (await s.get("/health")).status == 200
        await s.servers[0].start()
