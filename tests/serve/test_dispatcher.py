from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from brains import IDLE, request, servers

from jaxroute.serve.decide import Brain, BrainSettings
from jaxroute.serve.decision_log import DecisionLog, read_log
from jaxroute.serve.dispatcher import Dispatcher
from jaxroute.serve.types import Placement, Refused


class Clock:
    """A time that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def dispatcher(count: int = 2, max_in_flight: int | None = 1, log: DecisionLog | None = None, **settings) -> Dispatcher:
    brain = Brain(servers(count, max_in_flight), BrainSettings(policy="round-robin", **settings))
    return Dispatcher(brain, Clock(), log)


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


async def started(coroutine: Coroutine[None, None, Placement]) -> asyncio.Task[Placement]:
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    return task


def test_a_request_is_placed_at_once_without_a_turn_of_the_loop() -> None:
    async def test() -> None:
        made = dispatcher()
        coroutine = made.place(request("1"))
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        assert done.value.value.backend == "a"
        assert made._timer is None

    run(test)


def test_who_waits_is_placed_when_another_request_ends() -> None:
    async def test() -> None:
        made = dispatcher()
        assert {(await made.place(request(id))).backend for id in "12"} == {"a", "b"}
        waits = await started(made.place(request("3")))
        assert made.queue_length == 1
        made.clock.now = 3.0
        made.finished("2", 5)
        placement = await waits
        assert (placement.backend, placement.router_wait_s) == ("b", 3.0)
        made.failed("1")
        assert (await made.place(request("4"))).backend == "a"

    run(test)


def test_ticks_run_only_while_a_request_waits() -> None:
    async def test() -> None:
        made = dispatcher()
        calls = []
        decide = made.brain.decide
        made.brain.decide = lambda *args, **options: calls.append(1) or decide(*args, **options)
        await asyncio.sleep(0.1)
        assert calls == []
        await made.place(request("1"))
        await made.place(request("2"))
        waits = await started(made.place(request("3")))
        await asyncio.sleep(0.2)
        assert 4 <= len(calls) <= 14
        made.finished("1")
        await waits
        before = len(calls)
        await asyncio.sleep(0.1)
        assert len(calls) == before
        assert made._timer is None

    run(test)


def test_a_refusal_reaches_who_waits() -> None:
    async def test() -> None:
        made = dispatcher(max_wait_s=5.0, max_queue=1)
        await made.place(request("1"))
        await made.place(request("2"))
        waits = await started(made.place(request("3")))
        with pytest.raises(Refused, match="queue-full"):
            await made.place(request("4"))
        made.clock.now = 5.0
        # The next tick finds it.
        with pytest.raises(Refused, match="wait-limit"):
            await waits
        waits = await started(made.place(request("3")))
        made.set_open("a", False)
        assert not waits.done()
        made.set_open("b", False)
        with pytest.raises(Refused, match="no-backend"):
            await waits
        assert made.queue_length == 0

    run(test)


def test_who_goes_away_leaves_the_queue() -> None:
    async def test() -> None:
        made = dispatcher(count=1)
        await made.place(request("1"))
        gone = await started(made.place(request("2")))
        waits = await started(made.place(request("3")))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert made.queue_length == 1
        made.finished("1")
        assert (await waits).request.id == "3"

    run(test)


def test_who_goes_away_at_the_moment_of_its_placement_frees_the_server() -> None:
    async def test() -> None:
        made = dispatcher(count=1)
        await made.place(request("1"))
        gone = await started(made.place(request("2")))
        waits = await started(made.place(request("3")))
        made.finished("1")
        # Placed, but not yet told.
        assert made.status()[0].in_flight == 1
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert (await waits).backend == "a"
        assert made.brain.counts["ended aborted"] == 1

    run(test)


def test_a_retry_goes_elsewhere() -> None:
    async def test() -> None:
        made = dispatcher(count=3)
        first = await made.place(request("1"))
        made.clock.now = 1.0
        made.failed("1")
        second = await made.place(first.request, frozenset([first.backend]))
        assert second.backend != first.backend
        assert second.router_wait_s == 1.0
        with pytest.raises(Refused, match="no-backend"):
            await made.place(request("2"), frozenset("abc"))

    run(test)


def test_a_new_server_gets_who_waits_and_closing_refuses_them() -> None:
    async def test() -> None:
        made = dispatcher(count=1)
        await made.place(request("1"))
        waits = await started(made.place(request("2")))
        made.set_backends(servers(2, max_in_flight=1))
        assert (await waits).backend == "b"
        waits = await started(made.place(request("3")))
        made.close()
        for asked in (waits, made.place(request("4"))):
            with pytest.raises(Refused, match="closing"):
                await asked
        made.finished("1")
        assert made.status()[0].in_flight == 0
        assert made._timer is None

    run(test)


def test_many_requests_are_placed_in_order_and_the_loop_gets_its_turn() -> None:
    async def test() -> None:
        made = dispatcher(count=1, max_in_flight=None)
        made.set_open("a", False)
        made.brain.set_backends(servers(2, max_in_flight=200))
        placed: list[str] = []
        turns = []

        async def place(id: str) -> None:
            await made.place(request(id))
            placed.append(id)

        # All are held: the only open server is at its limit.
        for number in range(200):
            await made.place(request(f"before {number}"))
        tasks = [await started(place(str(number))) for number in range(100)]
        assert made.queue_length == 100
        made.set_open("a", True)
        while made.queue_length:
            turns.append(made.queue_length)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert placed == [str(number) for number in range(100)]
        assert turns == [84, 68, 52, 36, 20, 4]

    run(test)


def test_tokens_and_metrics_reach_the_view_and_ends_the_log(tmp_path: Path) -> None:
    async def test() -> None:
        with DecisionLog(tmp_path / "log.jsonl") as log:
            made = dispatcher(count=1, max_in_flight=None, log=log)
            made.scraped("a", IDLE)
            await made.place(request("1", 100, 50))
            await made.place(request("2", 100, 50, streamed=False))
            made.clock.now = 0.01
            made.first_token("1")
            made.tokens("1", 9)
            [status] = made.status()
            assert (status.in_flight, status.in_flight_tokens, status.outstanding_tokens) == (2, 210, 190)
            assert status.signal_age_s == 0.01
            made.clock.now = 2.0
            made.finished("1", 12)
            made.failed("2", "aborted")
            made.finished("2")
        rows = list(read_log(log.path))
        assert [(row.id, row.outcome, row.output_tokens, row.ttft_s) for row in rows] == [
            ("1", "finished", 12, 0.01),
            ("2", "aborted", None, None),
        ]
        assert rows[0].e2e_s == 2.0

    run(test)


def test_the_facade_adds_little(capsys: pytest.CaptureFixture) -> None:
    """A bound that a loaded machine meets; the figures are in the commit that brought the brain."""

    async def test() -> None:
        made = dispatcher(count=4, max_in_flight=None)
        started_at = time.thread_time()
        for number in range(1000):
            await made.place(request(str(number)))
            made.finished(str(number))
        assert time.thread_time() - started_at < 1.0

    run(test)
