"""A real Envoy asks the picker: what clients get, and what the picker learns of it."""

from __future__ import annotations

import asyncio
import collections
import time

import aiohttp
import pytest

from epp.gateway import gateway, needs_envoy
from fake_vllm import FakeVllm
from jaxroute.serve.config import Limits, Watching
from serve.harness import completion, text_of, until

pytestmark = needs_envoy

SLOW_TO_NOTICE = Watching(health_s=30, health_timeout_s=1, scrape_s=0.05)
"""So that requests meet a backend that is dead before a health check does."""


@pytest.mark.parametrize("full_duplex", [False, True])
async def test_a_stream_passes_byte_for_byte_and_its_tokens_are_counted(full_duplex: bool) -> None:
    async with gateway(2, full_duplex=full_duplex) as g:
        body = completion(12, stream=True)
        reply = await g.post(body)
        server = next(each for each in g.servers if each.bodies)
        async with g.client.post(f"{server.url}/v1/completions", json=body) as direct:
            expected = await direct.read()
        assert (reply.status, reply.body) == (200, expected)
        assert server.bodies[0] == server.bodies[1]
        assert reply.headers["X-Jaxroute-Backend"] == f"server-{g.servers.index(server)}"
        await until(lambda: g.in_flight() == 0)
        assert await g.metric(f'jaxroute_output_tokens_total{{backend="server-{g.servers.index(server)}"}}') == 12
        assert await g.metric("jaxroute_client_aborts_total") == 0


@pytest.mark.parametrize("full_duplex", [False, True])
async def test_a_large_body_passes_unchanged(full_duplex: bool) -> None:
    async with gateway(1, full_duplex=full_duplex) as g:
        reply = await g.post(completion(2, prompt="long " * 300_000))
        assert reply.status == 200
        assert len(g.servers[0].bodies[0]) > 1_500_000
        assert reply.json["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("full_duplex", [False, True])
async def test_tokens_are_seen_while_the_stream_runs(full_duplex: bool) -> None:
    async with gateway([FakeVllm(speed=1)], full_duplex=full_duplex) as g:
        task = asyncio.create_task(g.post(completion(60, stream=True)))
        load = g.picker.core.dispatcher.brain.tracker.loads[0]
        await until(lambda: load.in_flight == 1)
        before = load.in_flight_tokens
        await until(lambda: load.in_flight_tokens >= before + 10)
        assert not task.done()
        assert text_of((await task).events) == FakeVllm.words(0, 60)
        await until(lambda: load.in_flight == 0)


async def test_without_token_events_a_stream_counts_until_its_end_and_its_progress_is_estimated() -> None:
    async with gateway([FakeVllm(speed=1)], token_events=False) as g:
        task = asyncio.create_task(g.post(completion(60, stream=True)))
        brain = g.picker.core.dispatcher.brain
        await until(lambda: len(g.servers[0].engine.running) == 1 and g.servers[0].engine.running[0].done > 30)
        assert g.in_flight() == 1
        view = brain.tracker.view(g.picker.core.dispatcher.clock())
        assert view.in_flight_tokens[0] > brain.tracker.loads[0].awaiting_prompt_tokens
        assert text_of((await task).events) == FakeVllm.words(0, 60)
        await until(lambda: g.in_flight() == 0)
        assert brain.counts["ended finished"] == 1


async def test_requests_spread_over_the_backends_as_the_picker_says() -> None:
    async with gateway(3) as g:
        replies = await asyncio.gather(*(g.post(completion(3, stream=number % 2 == 0)) for number in range(12)))
        assert [reply.status for reply in replies] == [200] * 12
        said = collections.Counter(reply.headers["X-Jaxroute-Backend"] for reply in replies)
        assert said == {f"server-{number}": 4 for number in range(3)}
        assert [len(server.bodies) for server in g.servers] == [4, 4, 4]
        await until(lambda: g.in_flight() == 0)


async def test_a_client_cannot_say_where_its_request_goes() -> None:
    async with gateway(2) as g:
        elsewhere = {"x-gateway-destination-endpoint": "127.0.0.1:1", "X-Jaxroute-Backend": "server-1"}
        elsewhere["Content-Type"] = "application/json"
        replies = [await g.post(completion(2), headers=elsewhere) for _ in range(4)]
        assert [reply.status for reply in replies] == [200] * 4
        assert [len(server.bodies) for server in g.servers] == [2, 2]
        assert "X-Jaxroute-Backend" not in g.servers[0].seen[0].headers


@pytest.mark.parametrize("fault", ["close", "500", "503", "429"])
async def test_a_backend_that_fails_costs_no_client_an_error_and_the_picker_knows_who_answered(fault: str) -> None:
    async with gateway(3, watching=SLOW_TO_NOTICE) as g:
        g.servers[1].break_with(fault)
        replies = await asyncio.gather(*(g.post(completion(3, stream=True)) for _ in range(9)))
        assert [reply.status for reply in replies] == [200] * 9
        assert "server-1" not in {reply.headers["X-Jaxroute-Backend"] for reply in replies}
        assert g.servers[1].seen
        assert await g.metric('jaxroute_retries_total{reason="gateway-retry"}') >= 1
        assert await g.metric('jaxroute_backend_failures_total{backend="server-1",reason="gateway-retry"}') >= 1
        await until(lambda: g.in_flight() == 0)


async def test_a_dead_backend_costs_no_client_an_error_and_is_left_alone_soon() -> None:
    async with gateway(2) as g:
        await g.servers[0].stop()
        replies = [await g.post(completion(3)) for _ in range(6)]
        assert [reply.status for reply in replies] == [200] * 6
        await until(lambda: not g.picker.core.backends["server-0"].is_open)
        assert len(g.servers[1].bodies) == 6
        await g.servers[0].start()


async def test_where_every_backend_fails_the_client_gets_what_the_last_one_said() -> None:
    async with gateway(2, watching=SLOW_TO_NOTICE) as g:
        for server in g.servers:
            server.break_with("500")
        reply = await g.post(completion(3))
        assert (reply.status, reply.json["error"]["code"]) == (500, 500)
        await until(lambda: g.in_flight() == 0)
        assert sum([await g.metric(f'jaxroute_requests_total{{backend="server-{n}",code="500"}}') for n in (0, 1)]) == 1


async def test_a_backend_that_dies_in_mid_stream_ends_the_stream_without_an_end() -> None:
    async with gateway([FakeVllm(speed=1)]) as g:
        url, body = f"{g.url}/v1/completions", completion(2000, stream=True)
        async with g.client.post(url, json=body) as response:
            assert await response.content.readany()
            await g.servers[0].stop()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        await until(lambda: g.in_flight() == 0)
        assert await g.metric("jaxroute_client_aborts_total") == 1
        await g.servers[0].start()


async def test_no_backend_is_a_503_in_openai_words() -> None:
    async with gateway(1) as g:
        g.servers[0].healthy = False
        await until(lambda: not g.picker.core.backends.any_open)
        reply = await g.post(completion(3))
        assert (reply.status, reply.json["error"]["code"]) == (503, "no-backend")
        assert reply.headers["Retry-After"] == "1"
        assert reply.headers["Content-Type"] == "application/json"


async def test_a_full_queue_is_a_429_and_a_held_request_goes_once_there_is_room() -> None:
    async with gateway([FakeVllm(speed=1)], max_in_flight=1, limits=Limits(queue=1)) as g:
        first = asyncio.create_task(g.post(completion(60, stream=True)))
        await until(lambda: g.in_flight() == 1)
        held = asyncio.create_task(g.post(completion(2)))
        await until(lambda: g.picker.core.dispatcher.queue_length == 1)
        shed = await g.post(completion(2))
        assert (shed.status, shed.json["error"]["code"]) == (429, "queue-full")
        assert int(shed.headers["Retry-After"]) >= 1
        assert not held.done()
        assert [(await task).status for task in (first, held)] == [200, 200]


async def test_a_request_is_held_for_longer_than_envoy_waits_for_a_picker() -> None:
    async with gateway([FakeVllm(speed=1)], max_in_flight=1) as g:
        first = asyncio.create_task(g.post(completion(250, stream=True)))
        await until(lambda: g.in_flight() == 1)
        start = time.monotonic()
        assert (await g.post(completion(2))).status == 200
        assert time.monotonic() - start > 1.2
        assert (await first).status == 200


@pytest.mark.parametrize("full_duplex", [False, True])
async def test_a_client_that_leaves_while_its_request_is_held_leaves_the_queue(full_duplex: bool) -> None:
    async with gateway([FakeVllm(speed=1)], max_in_flight=1, full_duplex=full_duplex) as g:
        dispatcher = g.picker.core.dispatcher
        first = asyncio.create_task(g.post(completion(60, stream=True)))
        await until(lambda: g.in_flight() == 1)
        held = asyncio.create_task(g.post(completion(2)))
        await until(lambda: dispatcher.queue_length == 1)
        held.cancel()
        await until(lambda: dispatcher.queue_length == 0, 1.0)
        assert not first.done()
        assert await g.metric("jaxroute_client_aborts_total") == 1
        assert (await first).status == 200


async def test_a_client_that_leaves_in_mid_stream_aborts_its_request_at_the_backend() -> None:
    async with gateway([FakeVllm(speed=1)]) as g:
        task = asyncio.create_task(g.post(completion(2000, stream=True)))
        await until(lambda: g.servers[0].engine.running and g.servers[0].engine.running[0].done > 3)
        task.cancel()
        await until(lambda: g.servers[0].aborted == 1)
        await until(lambda: g.in_flight() == 0)
        assert await g.metric("jaxroute_client_aborts_total") == 1


async def test_without_a_picker_envoy_routes_by_itself_where_it_may() -> None:
    async with gateway(2, fail_open=True) as g:
        await g.picker.stop()
        replies = await asyncio.gather(*(g.post(completion(3, stream=True)) for _ in range(6)))
        assert [(reply.status, text_of(reply.events)) for reply in replies] == [(200, FakeVllm.words(0, 3))] * 6
        assert "X-Jaxroute-Backend" not in replies[0].headers


@pytest.mark.parametrize("full_duplex", [False, True])
async def test_without_a_picker_envoy_answers_503_where_it_may_not_route_by_itself(full_duplex: bool) -> None:
    async with gateway(2, full_duplex=full_duplex) as g:
        await g.picker.stop()
        assert (await g.post(completion(3))).status == 503
        assert not any(server.bodies for server in g.servers)


async def test_a_picker_that_dies_in_mid_stream_costs_no_stream_where_envoy_may_go_on() -> None:
    async with gateway([FakeVllm(speed=1)], fail_open=True) as g:
        task = asyncio.create_task(g.post(completion(80, stream=True)))
        await until(lambda: g.servers[0].engine.running and g.servers[0].engine.running[0].done > 10)
        await g.picker.stop()
        reply = await task
        assert (reply.status, text_of(reply.events)) == (200, FakeVllm.words(0, 80))
        assert reply.events[-1] == "[DONE]"
