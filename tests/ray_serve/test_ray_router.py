"""The router within Ray's own machinery, with replicas that are stood in for; skipped where Ray is not installed."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxroute.errors import InputError
from jaxroute.serve.ray_report import load_report, read_report

pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'jaxroute[ray]'")

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError, TaskCancelledError
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest

from jaxroute.serve.ray import ROUTER, JaxrouteRouter, _outcome, router_config

pytestmark = pytest.mark.filterwarnings("default")
"""Ray's own warnings are not ours to mend."""

DEPLOYMENT = DeploymentID(name="engines", app_name="app")


class StandIn:
    """What Ray's router asks of a replica."""

    node_id, availability_zone, is_cross_language = "node", None, False

    def __init__(self, name: str, *, most: int = 100, **stats: Any) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.max_ongoing_requests, self.routing_stats = most, stats
        self.multiplexed_model_ids: set[str] = set()
        self.queue_length, self.failure = 0, None

    async def get_queue_len(self, *, deadline_s: float) -> int:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        return self.queue_length


class Result:
    """Of a call: Ray adds callbacks to it, and they come from a thread."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


@asynccontextmanager
async def routing(replicas: list[StandIn], **options: Any) -> AsyncIterator[JaxrouteRouter]:
    router = JaxrouteRouter(
        deployment_id=DEPLOYMENT,
        handle_source=DeploymentHandleSource.REPLICA,
        self_actor_id="actor",
        use_replica_queue_len_cache=True,
        self_node_id="node",
        prefer_local_node_routing=False,
    )
    router.initialize_state(**{"policy": "round-robin", "predictor": "none", **options})
    router.update_replicas(replicas)
    await asyncio.sleep(0.01)
    yield router
    if router._broken is None:
        router.fleet.close()
        router._exporting.cancel()


def pending(id: str, *args: Any, model: str = "", **kwargs: Any) -> PendingRequest:
    metadata = RequestMetadata(request_id=id, internal_request_id=id, multiplexed_model_id=model)
    return PendingRequest(args=list(args or [{"prompt": "a few words"}]), kwargs=kwargs, metadata=metadata)


async def choose(router: JaxrouteRouter, asked: PendingRequest, *, again: bool = False) -> str:
    """As Ray does it before it sends a call."""
    replica = await router._choose_replica_for_request(asked, is_retry=again)
    router.on_send_request(replica.replica_id)
    return replica.replica_id.unique_id


def accept(router: JaxrouteRouter, asked: PendingRequest, name: str) -> Result:
    """The replica says that it has taken the call."""
    result = Result()
    router.on_request_routed(asked, ReplicaID(name, DEPLOYMENT), result)
    return result


async def finish(router: JaxrouteRouter, asked: PendingRequest, name: str, result: Result, how: Any = None) -> None:
    """Ray's callback comes first, then ours."""
    replica_id = ReplicaID(name, DEPLOYMENT)
    router._event_loop.call_soon_threadsafe(router.on_request_completed, replica_id, asked.metadata.internal_request_id)
    for callback in result.callbacks:
        callback(how)
    await asyncio.sleep(0.01)


def in_flight(router: JaxrouteRouter) -> list[int]:
    return [each.in_flight for each in router.fleet.dispatcher.status()]


def ended(router: JaxrouteRouter, code: str) -> float:
    registry, total = router.fleet.telemetry.registry, 0.0
    for family in registry.collect():
        for sample in family.samples:
            if sample.name == "jaxroute_requests_total" and sample.labels["code"] == code:
                total += sample.value
    return total


def test_calls_are_spread_by_the_policy_and_end() -> None:
    async def test() -> None:
        async with routing([StandIn(name) for name in "abc"]) as router:
            asked = [pending(str(number)) for number in range(6)]
            names = [await choose(router, each) for each in asked]
            assert names == ["a", "b", "c", "a", "b", "c"]
            assert in_flight(router) == [2, 2, 2]
            assert router.curr_num_routing_tasks == 0
            for each, name in zip(asked, names, strict=True):
                await finish(router, each, name, accept(router, each, name))
            assert in_flight(router) == [0, 0, 0]
            assert ended(router, "200") == 6

    run(test)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        (RayTaskError("f", "trace", ValueError("no")), "500"),
        (ActorDiedError(), "502"),
        (TaskCancelledError(), "499"),
        (None, "200"),
    ],
)
def test_how_a_call_ended_is_heard_of(how: Any, code: str) -> None:
    async def test() -> None:
        async with routing([StandIn("a")]) as router:
            asked = pending("x")
            name = await choose(router, asked)
            await finish(router, asked, name, accept(router, asked, name), how)
            assert ended(router, code) == 1
            assert in_flight(router) == [0]

    run(test)


def test_a_held_call_is_placed_at_once_when_there_is_room_and_costs_no_task_that_spins() -> None:
    async def test() -> None:
        async with routing([StandIn("a", most=1)], policy="round-robin+spf") as router:
            first = pending("first")
            assert await choose(router, first) == "a"
            long, short = pending("long", prompt="text", max_tokens=900), pending("short", prompt="text", max_tokens=2)
            long.args = short.args = []
            waiting = [asyncio.ensure_future(choose(router, each)) for each in (long, short)]
            await asyncio.sleep(0.1)
            assert router.fleet.dispatcher.queue_length == 2
            assert router.curr_num_routing_tasks == 2
            assert router.num_routing_tasks_in_backoff == 0
            await finish(router, first, "a", accept(router, first, "a"))
            # Ray remembers the replica's length until it hears of it.
            router.decrement_queue_len_cache(ReplicaID("a", DEPLOYMENT))
            assert await asyncio.wait_for(waiting[1], 1) == "a"
            assert not waiting[0].done()
            waiting[0].cancel()
            await asyncio.sleep(0.01)
            assert router.fleet.dispatcher.queue_length == 0
            assert router.curr_num_routing_tasks == 0

    run(test)


def test_hundreds_of_calls_can_wait_at_once() -> None:
    async def test() -> None:
        async with routing([StandIn("a", most=1)]) as router:
            first = pending("first")
            await choose(router, first)
            waiting = [asyncio.ensure_future(choose(router, pending(f"{number}"))) for number in range(300)]
            await asyncio.sleep(0.2)
            assert router.fleet.dispatcher.queue_length == 300
            for each in waiting:
                each.cancel()
            await asyncio.sleep(0.05)
            assert router.fleet.dispatcher.queue_length == 0
            assert router.num_pending_requests == 0

    run(test)


def test_a_rejected_call_goes_to_another_replica() -> None:
    async def test() -> None:
        async with routing([StandIn(name) for name in "ab"]) as router:
            asked = pending("x")
            name = await choose(router, asked)
            other = await choose(router, asked, again=True)
            assert {name, other} == {"a", "b"}
            # The late word of the first try.
            router.on_request_completed(ReplicaID(name, DEPLOYMENT), "x")
            await asyncio.sleep(0.01)
            assert sum(in_flight(router)) == 1
            await finish(router, asked, other, accept(router, asked, other))
            assert in_flight(router) == [0, 0]

    run(test)


def test_a_replica_that_is_full_by_its_own_word_is_passed_over() -> None:
    async def test() -> None:
        replicas = [StandIn("a", most=5), StandIn("b", most=5)]
        replicas[0].queue_length = 5
        async with routing(replicas) as router:
            names = [await choose(router, pending(str(number))) for number in range(3)]
            assert names == ["b", "b", "b"]
            assert in_flight(router) == [0, 3]

    run(test)


def test_a_dead_replica_gets_nothing_any_more_and_a_new_one_does() -> None:
    async def test() -> None:
        replicas = [StandIn("a"), StandIn("b")]
        async with routing(replicas) as router:
            router.on_replica_actor_died(replicas[0].replica_id)
            assert [await choose(router, pending(str(number))) for number in range(2)] == ["b", "b"]
            router.update_replicas([replicas[1], StandIn("c")])
            assert {await choose(router, pending(str(number))) for number in range(2, 6)} == {"b", "c"}

    run(test)


def test_a_replica_whose_probe_fails_is_passed_over() -> None:
    async def test() -> None:
        replicas = [StandIn("a"), StandIn("b")]
        replicas[0].failure = ActorUnavailableError("gone for now", b"0" * 16)
        async with routing(replicas) as router:
            assert [await choose(router, pending(str(number))) for number in range(3)] == ["b", "b", "b"]

    run(test)


def test_calls_wait_until_there_is_a_replica() -> None:
    async def test() -> None:
        async with routing([]) as router:
            waiting = asyncio.ensure_future(choose(router, pending("x")))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            router.update_replicas([StandIn("a")])
            assert await asyncio.wait_for(waiting, 2) == "a"

    run(test)


def test_the_shipped_policy_decides_where_replicas_report() -> None:
    async def test() -> None:
        replicas = [StandIn(name, **load_report(running, 0, 0.1 * running)) for name, running in (("a", 9), ("b", 0))]
        async with routing(replicas, policy="default", predictor="default") as router:
            body = SimpleNamespace(messages=[{"role": "user", "content": "Translate to German: good morning"}])
            assert await choose(router, pending("x", body)) == "b"
            labels = {"backend": "b", "decided_by": "policy"}
            assert router.fleet.telemetry.registry.get_sample_value("jaxroute_decisions_total", labels) == 1

    run(test)


def test_a_choice_without_a_call_counts_until_its_estimated_end() -> None:
    async def test() -> None:
        async with routing([StandIn(name) for name in "ab"]) as router:
            asked = pending("x", {"prompt": "text", "max_tokens": 2})
            # As Ray does it where requests go to the replicas' own ports.
            [[replica]] = await router.choose_replicas(router._replicas_list, asked)
            assert replica.replica_id.unique_id == "a"
            assert in_flight(router) == [1, 0]
            await asyncio.sleep(0.3)
            assert in_flight(router) == [0, 0]

    run(test)


def test_a_multiplexed_model_stays_where_it_is_while_there_is_room() -> None:
    async def test() -> None:
        replicas = [StandIn(name, most=2) for name in "abc"]
        replicas[2].multiplexed_model_ids.add("french")
        async with routing(replicas) as router:
            names = [await choose(router, pending(str(number), model="french")) for number in range(3)]
            assert names[:2] == ["c", "c"]
            assert names[2] in ("a", "b")
            # Nobody says yet that the model is there, but it is being loaded.
            german = [await choose(router, pending(f"g{number}", model="german")) for number in range(2)]
            assert german[0] == german[1] != "c" or german[0] == names[2]

    run(test)


def test_wrong_options_are_refused_before_the_deployment() -> None:
    with pytest.raises(InputError, match="no-such-policy"):
        router_config(policy="no-such-policy", predictor="none")
    config = router_config(policy="round-robin", predictor="none")
    assert config.get_request_router_class() is JaxrouteRouter
    assert config.request_router_class == ROUTER
    assert config.request_routing_stats_period_s == 0.2


def test_where_loading_fails_each_call_says_why() -> None:
    async def test() -> None:
        async with routing([StandIn("a")], policy="no-such-policy") as router:
            for number in range(2):
                with pytest.raises(InputError, match="no-such-policy"):
                    await asyncio.wait_for(choose(router, pending(str(number))), 2)
            assert router.num_pending_requests == 0

    run(test)


def test_outcomes_are_told_apart() -> None:
    assert _outcome(b"bytes") == "finished"
    assert _outcome(RayTaskError("f", "trace", TaskCancelledError())) == "aborted"


def test_the_router_needs_no_jax() -> None:
    code = "import sys; import jaxroute.serve.ray; print([name for name in ('jax', 'flax') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_example_of_the_readme_is_what_ray_takes() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [block] = re.findall(r"```py\n(from ray import serve.*?)```", readme, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["Engine"].num_replicas == 4
    assert names["Engine"]._deployment_config.request_router_config.get_request_router_class() is JaxrouteRouter
    assert read_report(names["Engine"].func_or_class().record_routing_stats()) is not None
