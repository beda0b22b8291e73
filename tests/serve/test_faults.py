"""Backends that fail, each in its own way: what the client sees, and how soon all is well again."""

from __future__ import annotations

import asyncio
import time

import pytest

from fake_vllm import SLOW_S, FakeVllm
from jaxroute.serve.config import Limits, Timeouts, Watching
from serve.harness import Service, completion, service, text_of, until


async def failures(s: Service, name: str, reason: str) -> float:
    return await s.metric(f'jaxroute_backend_failures_total{{backend="{name}",reason="{reason}"}}')


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["close", "500", "503", "429"])
async def test_a_backend_that_fails_before_the_first_byte_costs_no_client_an_error(fault: str, stream: bool) -> None:
    async with service(3) as s:
        s.servers[1].break_with(fault)
        replies = await asyncio.gather(*(s.post(completion(5, stream=stream)) for _ in range(12)))
        assert [reply.status for reply in replies] == [200] * 12
        if stream:
            assert all(text_of(reply.events) == FakeVllm.words(0, 5) for reply in replies)
        assert "server-1" not in {reply.headers["X-Jaxroute-Backend"] for reply in replies}
        assert s.servers[1].seen
        assert await s.in_flight() == 0


async def test_a_killed_backend_costs_no_client_an_error_that_has_seen_nothing_yet() -> None:
    async with service([FakeVllm(speed=1), FakeVllm(speed=1)]) as s:
        tasks = [asyncio.create_task(s.post(completion(40))) for _ in range(8)]
        await until(lambda: len(s.servers[0].engine.running) == 4)
        await s.servers[0].stop()
        replies = await asyncio.gather(*tasks)
        assert [reply.status for reply in replies] == [200] * 8
        assert {reply.headers["X-Jaxroute-Backend"] for reply in replies} == {"server-1"}
        await s.servers[0].start()


async def test_an_answer_that_is_not_streamed_is_tried_elsewhere_when_it_breaks_off() -> None:
    async with service(2) as s:
        s.servers[0].break_with("cut")
        replies = [await s.post(completion(3)) for _ in range(4)]
        assert [reply.status for reply in replies] == [200] * 4


@pytest.mark.parametrize("fault", ["cut", "cut-inside-event"])
async def test_a_stream_whose_backend_dies_ends_with_an_error_event(fault: str) -> None:
    async with service(1) as s:
        s.servers[0].break_with(fault)
        reply = await s.post(completion(10, stream=True))
        assert reply.status == 200
        *before, last = reply.events
        assert 3 <= len(before) <= 5
        assert text_of(before) == FakeVllm.words(0, len(before))
        assert last["error"]["code"] == "backend_lost"
        assert "[DONE]" not in reply.events
        assert await s.metric('jaxroute_streams_cut_total{backend="server-0"}') == 1
        assert await s.in_flight() == 0


async def test_a_killed_backend_ends_its_streams_with_an_error_event() -> None:
    async with service([FakeVllm(speed=1)]) as s:
        task = asyncio.create_task(s.post(completion(500, stream=True)))
        await until(lambda: s.servers[0].engine.running and s.servers[0].engine.running[0].done > 3)
        await s.servers[0].stop()
        assert (await task).events[-1]["error"]["type"] == "upstream_error"
        await s.servers[0].start()


async def test_a_stream_that_goes_silent_ends_with_an_error_event() -> None:
    async with service(1, timeouts=Timeouts(stream_s=0.3)) as s:
        s.servers[0].break_with("stall")
        reply = await s.post(completion(10, stream=True))
        assert reply.events[-1]["error"]["code"] == "backend_stalled"
        await until(lambda: s.servers[0].aborted == 1)


async def test_a_hung_backend_loses_its_requests_to_another_once_its_health_check_fails() -> None:
    async with service(2) as s:
        s.servers[0].break_with("hang")
        start = time.monotonic()
        replies = await asyncio.gather(*(s.post(completion(3, stream=True)) for _ in range(4)))
        assert [reply.status for reply in replies] == [200] * 4
        assert time.monotonic() - start < 3
        assert await failures(s, "server-0", "down") == 2
        s.servers[0].break_with(None)


async def test_a_backend_that_hangs_and_says_it_is_well_loses_its_streams_to_another_in_time() -> None:
    # None of its failed health checks counts.
    async with service(2, timeouts=Timeouts(first_byte_s=1.0), watching=Watching(health_failures=1000)) as s:
        s.servers[0].break_with("hang")
        start = time.monotonic()
        replies = await asyncio.gather(*(s.post(completion(3, stream=True)) for _ in range(4)))
        assert 1.0 <= time.monotonic() - start < 5
        assert [reply.status for reply in replies] == [200] * 4
        assert all(text_of(reply.events) == FakeVllm.words(0, 3) for reply in replies)
        assert {reply.headers["X-Jaxroute-Backend"] for reply in replies} == {"server-1"}
        assert await failures(s, "server-0", "timeout") == 2
        assert await s.metric('jaxroute_retries_total{reason="timeout"}') == 2
        assert await s.in_flight() == 0
        s.servers[0].break_with(None)


async def test_where_every_backend_hangs_a_stream_is_a_504_after_the_tries() -> None:
    async with service(
        2, timeouts=Timeouts(first_byte_s=0.2), limits=Limits(retries=1), watching=Watching(health_failures=1000)
    ) as s:
        for server in s.servers:
            server.break_with("hang")
        start = time.monotonic()
        reply = await s.post(completion(3, stream=True))
        assert 0.4 <= time.monotonic() - start < 3
        assert (reply.status, reply.json["error"]["code"]) == (504, "backend_timeout")


@pytest.mark.parametrize(("first_s", "between_s"), [(0.8, 1.6), (5.0, 0.2)])
async def test_a_stream_that_has_begun_has_the_time_between_two_pieces(first_s: float, between_s: float) -> None:
    async with service(1, timeouts=Timeouts(first_byte_s=first_s, stream_s=between_s)) as s:
        s.servers[0].break_with("stall")
        start = time.monotonic()
        reply = await s.post(completion(10, stream=True))
        assert between_s <= time.monotonic() - start
        assert reply.events[-1]["error"]["code"] == "backend_stalled"
        if between_s < first_s:
            assert time.monotonic() - start < first_s


async def test_a_backend_that_does_not_answer_in_time_is_a_504() -> None:
    async with service(2, timeouts=Timeouts(answer_s=0.2), watching=Watching(health_failures=1000)) as s:
        for server in s.servers:
            server.break_with("hang")
        reply = await s.post(completion(3))
        assert reply.status == 504
        assert reply.json["error"]["code"] == "backend_timeout"


async def test_a_slow_backend_is_waited_for() -> None:
    async with service(1) as s:
        s.servers[0].break_with("slow")
        start = time.monotonic()
        reply = await s.post(completion(3, stream=True))
        assert reply.status == 200
        assert time.monotonic() - start >= SLOW_S
        assert await failures(s, "server-0", "timeout") == 0


async def test_what_every_backend_refuses_comes_back_as_the_last_one_said_it() -> None:
    async with service(3, limits=Limits(retries=1)) as s:
        for server in s.servers:
            server.break_with("503")
        reply = await s.post(completion(3))
        assert reply.status == 503
        assert reply.json["error"]["message"] == "fault"
        assert reply.headers["Retry-After"] == "1"
        assert sum(len(server.seen) for server in s.servers) == 2


async def test_a_clients_own_mistake_is_not_tried_elsewhere() -> None:
    async with service([FakeVllm(key="k"), FakeVllm(key="k")]) as s:
        reply = await s.post(completion(3))
        assert reply.status == 401
        assert sum(len(server.seen) for server in s.servers) == 1


async def test_a_backend_that_fails_five_times_in_a_row_is_left_alone_and_then_tried_by_one_request() -> None:
    watching = Watching(health_s=0.1, scrape_s=0.05, breaker_s=0.4)
    async with service(2, watching=watching) as s:
        s.servers[0].break_with("500")
        for _ in range(20):
            assert (await s.post(completion(2))).status == 200
        assert len(s.servers[0].seen) == 5
        assert await s.metric('jaxroute_breaker_state{backend="server-0",state="open"}') == 1
        await asyncio.sleep(0.45)
        for _ in range(10):
            assert (await s.post(completion(2))).status == 200
        assert len(s.servers[0].seen) == 6
        s.servers[0].break_with(None)
        await asyncio.sleep(0.45)
        replies = [await s.post(completion(2)) for _ in range(6)]
        assert {reply.headers["X-Jaxroute-Backend"] for reply in replies} == {"server-0", "server-1"}
        assert await s.metric('jaxroute_breaker_state{backend="server-0",state="closed"}') == 1


async def test_all_backends_down_is_a_503_at_once_and_over_soon_after_one_is_back() -> None:
    async with service(2, watching=Watching()) as s:
        for server in s.servers:
            await server.stop()
        await s.post(completion(2))
        await asyncio.sleep(0.7)
        start = time.monotonic()
        reply = await s.post(completion(2))
        assert reply.status == 503
        assert time.monotonic() - start < 0.2
        assert reply.json["error"]["code"] == "no-backend"
        assert int(reply.headers["Retry-After"]) >= 1
        await s.servers[1].start()
        back = time.monotonic()
        while (await s.post(completion(2))).status != 200:
            await asyncio.sleep(0.02)
        assert time.monotonic() - back < 2
        await s.servers[0].start()


async def test_garbage_metrics_leave_the_requests_alone_and_are_counted() -> None:
    async with service(2) as s:
        s.servers[0].break_with("garbage-metrics")
        await asyncio.sleep(0.2)
        assert [(await s.post(completion(2))).status for _ in range(4)] == [200] * 4
        assert await failures(s, "server-0", "metrics") >= 1
        assert await s.metric('jaxroute_signal_age_seconds{backend="server-0"}') > 0.1


async def test_a_connection_that_the_backend_has_closed_meanwhile_costs_no_request() -> None:
    async with service([FakeVllm(keep_alive_s=0.05)]) as s:
        for _ in range(12):
            assert (await s.post(completion(1))).status == 200
            await asyncio.sleep(0.05)
        assert await failures(s, "server-0", "closed") == 0


async def test_a_pooled_connection_that_breaks_under_a_request_is_replaced() -> None:
    async with service(1) as s:
        assert (await s.post(completion(1))).status == 200
        s.servers[0].break_with("close", times=1)
        assert (await s.post(completion(1))).status == 200
        assert len(s.servers[0].seen) == 3
        assert await failures(s, "server-0", "closed") == 0
