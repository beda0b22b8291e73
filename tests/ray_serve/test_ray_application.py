"""The router in a real Ray Serve application on this machine: three replicas, calls through handles and HTTP."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'jaxroute[ray]'")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'jaxroute[ray]'")

from ray import serve  # noqa: E402

from jaxroute.policies.folder import DEFAULT_FOLDER, read_policy  # noqa: E402
from jaxroute.policies.runner import Runner  # noqa: E402
from jaxroute.serve.decision_log import LogRow, read_log  # noqa: E402
from jaxroute.serve.ray import router_config  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

HERE = Path(__file__).parent
NUMBERS = itertools.count()
PORT = 18_473


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), before or ""])
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    yield
    serve.shutdown()
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def deploy(policy: str, app: type, *args: Any, most: int = 100, replicas: int = 3, **options: Any) -> Any:
    """A handle of a fresh application."""
    config = router_config(policy=policy, predictor="none", profile="h100-80gb-llama31-8b", **options)
    deployment = serve.deployment(
        app,
        num_replicas=replicas,
        max_ongoing_requests=most,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=config,
        health_check_period_s=1,
    )
    return run(deployment.bind(*args))


def run(bound: Any, route: str | None = None) -> Any:
    """A handle of an application whose name is new: a handle keeps the router that it has made."""
    for name in serve.status().applications:
        serve.delete(name, _blocking=False)
    return serve.run(bound, name=f"app-{next(NUMBERS)}", route_prefix=route)


def router_of(handle: Any) -> Any:
    return handle._router._asyncio_router.request_router


async def ask_all(handle: Any, bodies: list[dict[str, Any]], gap_s: float = 0.0) -> list[Any]:
    asked = []
    for body in bodies:
        asked.append(handle.remote(body))
        await asyncio.sleep(gap_s)
    return await asyncio.gather(*asked, return_exceptions=True)


def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def in_flight(handle: Any) -> int:
    return sum(each.in_flight for each in router_of(handle).fleet.dispatcher.status())


def shares(answers: list[Any]) -> list[int]:
    return sorted(collections.Counter(answer["replica"] for answer in answers).values())


def test_all_calls_are_answered_and_spread_by_turns(cluster: None) -> None:
    from ray_apps import FakeEngine

    handle = deploy("round-robin", FakeEngine)
    answers = asyncio.run(ask_all(handle, [{"prompt": "text", "max_tokens": 5}] * 30))
    assert shares(answers) == [10, 10, 10]
    until(lambda: in_flight(handle) == 0)
    assert router_of(handle).fleet.dispatcher.brain.counts["ended finished"] == 30


def test_light_calls_avoid_a_replica_with_a_heavy_one(cluster: None) -> None:
    from ray_apps import FakeEngine

    handle = deploy("fewest-outstanding-tokens", FakeEngine, 2.0)
    heavy = {"prompt": "word " * 8000, "max_tokens": 200}
    answers = asyncio.run(ask_all(handle, [heavy] + [{"prompt": "text", "max_tokens": 5}] * 12, gap_s=0.02))
    assert answers[0]["replica"] not in {answer["replica"] for answer in answers[1:]}


def test_a_failing_application_and_a_dead_replica_lose_no_place(cluster: None) -> None:
    from ray_apps import FakeEngine

    handle = deploy("round-robin", FakeEngine, 1.0)
    failed = asyncio.run(ask_all(handle, [{"model": "broken"}] * 3))
    assert all("the application fails" in str(each) for each in failed)
    brain = router_of(handle).fleet.dispatcher.brain
    until(lambda: in_flight(handle) == 0)
    # Ray does not tell them from others.
    assert brain.counts["ended finished"] == 3
    before = {load.server.name for load in brain.tracker.loads}

    async def kill() -> list[Any]:
        under_way = [handle.remote({"prompt": "text", "max_tokens": 400}) for _ in range(6)]
        await asyncio.sleep(0.3)
        with pytest.raises(ray.exceptions.RayActorError):
            await handle.die.remote()
        return await asyncio.gather(*under_way, return_exceptions=True)

    answers = asyncio.run(kill())
    assert sum(isinstance(each, dict) for each in answers) == 4
    answers = asyncio.run(ask_all(handle, [{"prompt": "text", "max_tokens": 5}] * 12))
    assert all(isinstance(each, dict) for each in answers)
    until(lambda: in_flight(handle) == 0)
    # Ray starts another one, which gets its share.
    until(lambda: len(brain.tracker.loads) == 3)
    assert len(before & {load.server.name for load in brain.tracker.loads}) == 2
    answers = asyncio.run(ask_all(handle, [{"prompt": "text", "max_tokens": 5}] * 12))
    assert shares(answers) == [4, 4, 4]


def test_the_shipped_policy_decides_on_what_replicas_report(cluster: None, tmp_path: Path) -> None:
    from ray_apps import FakeEngine

    handle = deploy("default", FakeEngine, 1.0, decision_log=f"{tmp_path}/{{router}}.jsonl")
    asyncio.run(ask_all(handle, [{"prompt": "text", "max_tokens": 5}]))
    until(lambda: all(each.signal_age_s < 1 for each in router_of(handle).fleet.dispatcher.status()))
    random = np.random.default_rng(0)
    bodies = [
        {"prompt": "word " * int(random.integers(1, 900)), "max_tokens": int(random.integers(5, 60))} for _ in range(40)
    ]
    answers = asyncio.run(ask_all(handle, bodies, gap_s=0.03))
    assert all(isinstance(each, dict) for each in answers)
    until(lambda: in_flight(handle) == 0)
    router_of(handle).fleet._log.close()
    [log] = tmp_path.iterdir()
    rows = [row for row in read_log(log) if row.decided_by == "policy"]
    assert len(rows) >= 38
    assert max(row.signal_age_s or 0 for row in rows) < 3
    runner = Runner(read_policy(DEFAULT_FOLDER))
    for row in rows:
        assert row.backend == row.names[int(np.argmax(scores_of(runner, row)[:-1]))]
    assert len({row.backend for row in rows}) == 3


def scores_of(runner: Runner, row: LogRow) -> np.ndarray:
    """As the policy's own network has them for what was logged."""
    from jaxroute.observation import Observed

    mask = np.ones(len(row.names) + 1, bool)
    observed = Observed(
        np.asarray(row.router_features, np.float32), np.asarray(row.instance_features, np.float32), mask
    )
    scores = runner.logits(observed)
    np.testing.assert_allclose(scores, row.scores, rtol=1e-4, atol=1e-4)
    return scores


def test_without_reports_a_heuristic_decides(cluster: None) -> None:
    from ray_apps import FakeEngine

    handle = deploy("default", serve_without_reports(FakeEngine))
    answers = asyncio.run(ask_all(handle, [{"prompt": "text", "max_tokens": 5}] * 6))
    assert all(isinstance(each, dict) for each in answers)
    value = router_of(handle).fleet.telemetry.registry.get_sample_value
    assert value("jaxroute_fallback_total", {"reason": "missing-signal"}) == 6


def serve_without_reports(app: type) -> type:
    return type("Silent", (app,), {"__init__": lambda self: app.__init__(self, reports=False)})


def test_two_routers_share_replicas_that_are_full(cluster: None) -> None:
    from ray_apps import FakeEngine, Front

    config = router_config(policy="round-robin", predictor="none")
    engines = serve.deployment(
        FakeEngine,
        num_replicas=3,
        max_ongoing_requests=2,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=config,
    ).bind(5.0)
    front = serve.deployment(Front, ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100).bind(engines)
    through_front = run(front, "/ask")
    direct = serve.get_deployment_handle("FakeEngine", list(serve.status().applications)[-1])
    body = {"prompt": "text", "max_tokens": 20}

    async def both() -> list[Any]:
        return [*await asyncio.gather(ask_all(through_front, [body] * 12), ask_all(direct, [body] * 12))]

    answers = [answer for each in asyncio.run(both()) for answer in each]
    assert len(answers) == 24
    assert all(isinstance(each, dict) for each in answers), answers
    until(lambda: in_flight(direct) == 0)
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/ask", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.loads(answer.read())["tokens"] == 20


def test_a_caller_that_gives_up_frees_the_place(cluster: None) -> None:
    from ray_apps import FakeEngine

    handle = deploy("round-robin", FakeEngine, 1.0, most=1, replicas=1)

    async def test() -> None:
        first = handle.remote({"prompt": "text", "max_tokens": 400})
        await asyncio.sleep(0.3)
        second = handle.remote({"prompt": "text", "max_tokens": 5})
        await asyncio.sleep(0.3)
        assert router_of(handle).fleet.dispatcher.queue_length == 1
        second.cancel()
        await asyncio.sleep(0.3)
        assert router_of(handle).fleet.dispatcher.queue_length == 0
        third = handle.remote({"prompt": "text", "max_tokens": 5})
        await asyncio.sleep(0.1)
        first.cancel()
        assert (await third)["tokens"] == 5

    asyncio.run(asyncio.wait_for(test(), 30))
    until(lambda: in_flight(handle) == 0)


def test_a_multiplexed_model_is_loaded_by_one_replica(cluster: None) -> None:
    from ray_apps import Adapters

    handle = deploy("round-robin", Adapters)
    names = {
        model: set(asyncio.run(ask_all(handle.options(multiplexed_model_id=model), [{}] * 8, gap_s=0.02)))
        for model in ("french", "german", "danish")
    }
    assert [len(each) for each in names.values()] == [1, 1, 1]
    assert len(set.union(*names.values())) == 3
