"""The core behind a Ray Serve router, without Ray."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.serve.config import BackendConfig, ServeConfig
from jaxroute.serve.core import Core
from jaxroute.serve.openai_body import read_fields
from jaxroute.serve.ray_fleet import Fleet, Replica
from jaxroute.serve.ray_options import RayOptions
from jaxroute.serve.ray_report import KEY, load_report
from jaxroute.serve.types import Metrics, Placement

PROFILE = "a100-80gb-llama2-7b"


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 20))


def fleet(policy: str = "round-robin", count: int = 3, *, max_in_flight: int = 100, **options: Any) -> Fleet:
    given = {"policy": policy, "profile": PROFILE, "predictor": "none", **options}
    made = Fleet(RayOptions.of(given))
    made.replace(replicas(count, max_in_flight))
    return made


def replicas(count: int, max_in_flight: int = 100, **stats: Any) -> list[Replica]:
    return [Replica(name, max_in_flight, stats) for name in "abcdefgh"[:count]]


def reported(names: str, running: int = 0) -> list[Replica]:
    return [Replica(name, 100, load_report(running, 0, 0.0)) for name in names]


def in_flight(made: Fleet) -> list[int]:
    return [each.in_flight for each in made.dispatcher.status()]


def fallbacks(made: Fleet, reason: str) -> float:
    return made.telemetry.registry.get_sample_value("jaxroute_fallback_total", {"reason": reason}) or 0.0


def outcomes(made: Fleet) -> dict[str, int]:
    counts = made.dispatcher.brain.counts
    return {name.removeprefix("ended "): count for name, count in counts.items() if name.startswith("ended ")}


async def send(made: Fleet, id: str, **body: Any) -> str:
    """A call that a replica has accepted."""
    name = await made.choose(id, object(), [{"prompt": "a few words", **body}])
    assert name is not None
    made.taken(id)
    return name


def test_calls_go_where_the_policy_says_and_their_ends_are_heard_of() -> None:
    async def test() -> None:
        made = fleet()
        names = [await send(made, str(number)) for number in range(6)]
        assert names == ["a", "b", "c", "a", "b", "c"]
        assert in_flight(made) == [2, 2, 2]
        for number, name in enumerate(names):
            made.ended(str(number), name, "finished")
        assert in_flight(made) == [0, 0, 0]
        assert outcomes(made) == {"finished": 6}
        made.close()

    run(test)


def test_the_choices_are_those_of_the_proxys_core_on_the_same_view() -> None:
    async def test() -> None:
        now = [100.0]
        options = RayOptions.of({"policy": "default", "profile": PROFILE, "predictor": "none"})
        ray, proxy = Fleet(options, clock=lambda: now[0]), core()
        proxy.dispatcher.clock = lambda: now[0]
        proxy.dispatcher.brain.tracker._start_s = now[0]
        seen: dict[str, list[Placement]] = {"ray": [], "proxy": []}
        for name, visits in (("ray", ray.visits), ("proxy", proxy.visits)):
            visits.placed = seen[name].append  # type: ignore[method-assign]
        random = np.random.default_rng(0)
        placed: list[tuple[str, str, Any, Any]] = []
        for number in range(60):
            loads = random.integers(0, 9, 3).tolist()
            ray.replace(
                [Replica(name, 100, load_report(load, 0, load / 10)) for name, load in zip("abc", loads, strict=True)]
            )
            for name, load in zip("abc", loads, strict=True):
                proxy.dispatcher.brain.scraped(name, Metrics(load, 0, load / 10), now[0])
            body = {"prompt": "word " * int(random.integers(1, 900)), "max_tokens": int(random.integers(1, 700))}
            visit = await proxy.visits.begin(
                str(number), read_fields(body), time.monotonic(), task=None, stated=None, streamed=False
            )
            ours, theirs = await asyncio.gather(
                ray.choose(str(number), object(), [body]), proxy.visits.place(visit, frozenset())
            )
            assert ours == theirs.backend
            ray.taken(str(number))
            placed.append((str(number), ours, visit, proxy.backends[theirs.backend]))
            now[0] += float(random.uniform(0.0, 0.2))
            if len(placed) > 5:
                id, name, visit, backend = placed.pop(int(random.integers(len(placed))))
                ray.ended(id, name, "finished")
                proxy.visits.finished(visit, backend, 200, 0, stated=False)
        decisions = [[each.decision for each in seen[name]] for name in ("ray", "proxy")]
        assert [each.decided_by for each in decisions[0]] == ["policy"] * 60
        for ours, theirs in zip(*decisions, strict=True):
            np.testing.assert_allclose(ours.instance_features, theirs.instance_features, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-3, atol=1e-3)
        assert len({each.backend for each in seen["ray"]}) == 3
        ray.close()

    run(test)


def core() -> Core:
    backends = tuple(BackendConfig(f"http://{name}", name=name, max_in_flight=100) for name in "abc")
    made = Core(ServeConfig(backends=backends, policy="default", profile=PROFILE, predictor="none"))
    for each in made.backends:
        made.backends.health_passed(each)
    return made


def test_heavy_calls_go_elsewhere_than_by_turns() -> None:
    async def test() -> None:
        made = fleet("fewest-outstanding-tokens", 2)
        names = [await send(made, "heavy", prompt="word " * 4000)]
        names += [await send(made, str(number)) for number in range(3)]
        assert names == ["a", "b", "b", "b"]
        made.close()

    run(test)


def test_a_call_waits_while_every_replica_is_full_and_short_ones_go_first() -> None:
    async def test() -> None:
        made = fleet("round-robin+spf", 1, max_in_flight=1)
        first = await send(made, "first")
        waiting = {
            name: asyncio.ensure_future(send(made, name, max_tokens=tokens))
            for name, tokens in (("long", 200), ("short", 2))
        }
        await asyncio.sleep(0.05)
        assert not any(each.done() for each in waiting.values())
        assert made.dispatcher.queue_length == 2
        made.ended("first", first, "finished")
        assert await waiting["short"] == "a"
        assert not waiting["long"].done()
        made.ended("short", "a", "finished")
        assert await waiting["long"] == "a"
        made.close()

    run(test)


def test_a_call_that_is_given_up_leaves_the_queue_or_its_place() -> None:
    async def test() -> None:
        made = fleet(count=1, max_in_flight=1)
        assert await made.choose("placed", object(), ["text"]) == "a"
        waiting = asyncio.ensure_future(made.choose("waiting", object(), ["text"]))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert made.dispatcher.queue_length == 0
        made.withdrawn("placed")
        assert in_flight(made) == [0]
        assert outcomes(made) == {"aborted": 1}
        assert not made._calls
        made.close()

    run(test)


@pytest.mark.parametrize("word_comes_first", [False, True])
def test_a_replica_that_rejects_a_call_is_left_out_and_its_late_word_ends_nothing(word_comes_first: bool) -> None:
    async def test() -> None:
        made = fleet(count=2)
        assert await made.choose("x", object(), ["text"]) == "a"
        arrival_s = made._calls["x"].visit.incoming.arrival_s
        if word_comes_first:
            made.ended("x", "a", "finished")
            assert in_flight(made) == [0, 0]
        assert await made.choose("x", object(), ["text"]) == "b"
        if not word_comes_first:
            made.ended("x", "a", "finished")
        assert in_flight(made) == [0, 1]
        assert made._calls["x"].visit.incoming.arrival_s == arrival_s
        made.taken("x")
        made.ended("x", "b", "finished")
        assert outcomes(made) == {"failed": 1, "finished": 1}
        assert not made._calls
        assert not made._late
        made.close()

    run(test)


def test_a_call_that_was_not_even_sent_expects_no_word() -> None:
    async def test() -> None:
        made, attempt = fleet(count=2), object()
        assert await made.choose("x", attempt, ["text"]) == "a"
        assert await made.choose("x", attempt, ["text"]) == "b"
        assert await made.choose("x", attempt, ["text"]) is None
        assert await made.choose("x", attempt, ["text"]) in ("a", "b")
        assert not made._late
        made.taken("x")
        made.ended("x", made._calls["x"].backend.name, "finished")  # type: ignore[union-attr]
        assert in_flight(made) == [0, 0]
        made.close()

    run(test)


def test_replicas_come_and_go() -> None:
    async def test() -> None:
        made = fleet(count=0)
        assert await made.choose("early", object(), ["text"]) is None
        made.replace(replicas(2))
        assert await made.choose("early", object(), ["text"]) == "a"
        made.taken("early")
        made.replace(replicas(3)[1:])
        assert {await send(made, str(number)) for number in range(4)} == {"b", "c"}
        made.ended("early", "a", "replica-died")
        assert outcomes(made) == {"failed": 1}
        assert in_flight(made) == [2, 2]
        made.close()

    run(test)


@pytest.mark.parametrize(("outcome", "code"), [("error", "500"), ("replica-died", "502"), ("aborted", "499")])
def test_failures_are_counted_as_such(outcome: Any, code: str) -> None:
    async def test() -> None:
        made = fleet()
        made.ended("x", await send(made, "x"), outcome)
        labels = {"backend": "a", "code": code}
        assert made.telemetry.registry.get_sample_value("jaxroute_requests_total", labels) == 1
        assert in_flight(made) == [0, 0, 0]
        made.close()

    run(test)


def test_a_replica_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    async def test() -> None:
        made = fleet(count=2)
        for _ in range(3):
            made.unavailable("a")
        assert {await send(made, str(number)) for number in range(4)} == {"b"}
        made.unavailable("nobody")
        made.close()

    run(test)


def test_what_replicas_report_reaches_the_view_with_its_age() -> None:
    async def test() -> None:
        made = fleet("default")
        stats = load_report(7, 2, 0.25, kv_tokens=5000)
        stats[KEY]["at_s"] -= 2.0
        made.replace([Replica("a", 100, stats)])
        view = made.dispatcher.brain.tracker.view(made.dispatcher.clock())
        assert view.scraped_running.tolist() == [7]
        assert view.scraped_waiting.tolist() == [2]
        assert view.kv_tokens.tolist() == [5000]
        assert view.signal_age_s[0] == pytest.approx(2.0, abs=0.2)
        await asyncio.sleep(0.3)
        # The same one again is no news.
        made.replace([Replica("a", 100, dict(stats))])
        assert made.dispatcher.brain.tracker.view(made.dispatcher.clock()).signal_age_s[0] > 2.25
        made.close()

    run(test)


def test_without_reports_or_with_old_ones_a_heuristic_decides_and_that_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        made = fleet("default")
        for number in range(2):
            await send(made, f"none-{number}")
        assert fallbacks(made, "missing-signal") == 2
        old = reported("abc")
        for each in old:
            each.stats[KEY]["at_s"] -= 60.0
        made.replace(old)
        await send(made, "old")
        assert fallbacks(made, "stale-signal") == 1
        made.replace(reported("abc"))
        await send(made, "new")
        decisions = made.telemetry.registry.get_sample_value
        counted = [
            decisions("jaxroute_decisions_total", {"backend": name, "decided_by": "policy"}) or 0 for name in "abc"
        ]
        assert sum(counted) == 1
        made.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert [record.message for record in caplog.records] == [
        "a heuristic decides in the policy's place: missing-signal",
        "a heuristic decides in the policy's place: stale-signal",
    ]


def test_a_report_that_is_wrong_counts_as_none_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        made = fleet()
        for _ in range(3):
            made.replace([Replica("a", 100, {KEY: {"at_s": 1.0, "running": -1, "waiting": 0, "kv_usage": 0.0}})])
        assert (
            made.telemetry.registry.get_sample_value(
                "jaxroute_backend_failures_total", {"backend": "a", "reason": "metrics"}
            )
            == 3
        )
        assert made.dispatcher.status()[0].signal_age_s == float("inf")
        made.close()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert [record.message for record in caplog.records] == [
        "report of a replica cannot be read: routing stats: running is -1, must be a number of 0 to 2.14748e+09"
    ]


def test_a_replica_may_have_a_profile_of_its_own() -> None:
    async def test() -> None:
        made = fleet(count=0)
        stats = load_report(0, 0, 0.0, profile="h100-80gb-llama31-8b")
        made.replace(
            [Replica("a", 100, stats), Replica("b", 100), Replica("c", 100, load_report(0, 0, 0.0, profile="?"))]
        )
        names = [load.server.profile.name for load in made.dispatcher.brain.tracker.loads]
        assert names == ["h100-80gb-llama31-8b", PROFILE, PROFILE]
        made.close()

    run(test)


def test_a_call_whose_end_nobody_tells_is_over_in_time() -> None:
    async def test() -> None:
        made = fleet(answer_s=0.1)
        await send(made, "x")
        await asyncio.sleep(0.2)
        assert in_flight(made) == [0, 0, 0]
        assert outcomes(made) == {"expired": 1}
        made.ended("x", "a", "finished")
        made.close()

    run(test)


def test_the_end_of_a_call_that_nobody_will_tell_is_estimated() -> None:
    async def test() -> None:
        made = fleet("fewest-outstanding-tokens")
        await made.choose("short", object(), [{"prompt": "text", "max_tokens": 2}], is_heard_of=False)
        await made.choose("long", object(), [{"prompt": "text", "max_tokens": 900}], is_heard_of=False)
        assert sum(in_flight(made)) == 2
        await asyncio.sleep(0.5)
        assert sum(in_flight(made)) == 1
        assert outcomes(made) == {"finished": 1}
        made.close()

    run(test)


def test_a_reader_of_the_applications_own_is_asked_and_may_fail() -> None:
    async def test() -> None:
        made = fleet(read=f"{__name__}:own_reader")
        await made.choose("x", object(), [{"question": "word " * 40, "tokens": 77}])
        incoming = made._calls["x"].visit.incoming
        assert (incoming.prompt_tokens, incoming.predicted_tokens) == (50, 77)
        await made.choose("y", object(), ["no such thing"])
        assert fallbacks(made, "reader-error") == 1
        made.close()

    run(test)


def own_reader(args: Any, kwargs: Any) -> dict[str, Any]:
    return {"prompt": args[0]["question"], "predicted_tokens": args[0]["tokens"]}


def test_a_client_cannot_state_its_length() -> None:
    async def test() -> None:
        made = fleet()
        await made.choose("x", object(), [{"prompt": "text", "predicted_tokens": 9999}])
        assert made._calls["x"].visit.incoming.predicted_tokens < 9999
        made.close()

    run(test)


def test_arguments_without_a_prompt_are_counted() -> None:
    async def test() -> None:
        made = fleet()
        assert await made.choose("x", object(), [object()]) == "a"
        assert fallbacks(made, "no-prompt") == 1
        made.close()

    run(test)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"polcy": "default"}, "polcy: no such option"),
        ({"policy": "no-such-policy"}, "no-such-policy"),
        ({"profile": "no-such-profile"}, "no-such-profile"),
        ({"read": "no.such:thing"}, "give module:function"),
        ({"read": "jaxroute.errors:thing"}, "give module:function"),
        ({"answer_s": 0}, "answer_s is 0"),
        ({"shadow": "nobody"}, "shadow: unknown heuristic"),
    ],
)
def test_wrong_options_are_refused_at_once(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fleet(RayOptions.of({"predictor": "none", **given}))
