"""A live run, replayed through the simulator's view code, gives the features that the router logged while it ran."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recorded_run import SERVERS, Heard, record

from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.fleet import initial_state
from jaxroute.cluster.queue import predicted_left
from jaxroute.cluster.router_queue import head_of
from jaxroute.cluster.state import ClusterState
from jaxroute.cluster.view import router_view
from jaxroute.observation import observe
from jaxroute.policies.folder import DEFAULT_FOLDER, read_policy
from jaxroute.profiles import load_profile
from jaxroute.serve.decision_log import LogRow, read_log
from jaxroute.simulate import Fleet
from jaxroute.types import NEVER, ClusterParams, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.traces import read_trace

DT = 1e-4
"""Seconds, to which the simulator's clock is as good as the live one."""

PROFILE = load_profile("v100-32gb-llama2-7b")
POLICY = read_policy(DEFAULT_FOLDER)
FLEET = Fleet(
    (PROFILE,) * SERVERS,
    ("chunked",) * SERVERS,
    dt=DT,
    router_order=POLICY.router_order,
    ageing=POLICY.ageing,
    spf_edges=POLICY.spf_edges,
)


class Replay:
    """What was heard, as the state of a simulated fleet: whatever is at a server waits there with its tokens."""

    def __init__(self, path: Path, heard: list[Heard]) -> None:
        self.start_s = heard[0].now_s
        rows = sorted(read_log(path), key=lambda row: row.arrival_s)
        self.row_of = {row.id: number for number, row in enumerate(rows)}
        self.names = [f"server-{number}" for number in range(SERVERS)]
        table = read_trace(path)
        table = table.replace(arrival_s=table.arrival_s + (rows[0].arrival_s - self.start_s))
        told = (("predicted_bucket", "predicted_tokens", "predicted_upper"), rows)
        prediction = Prediction(*(np.array([getattr(row, name) for row in told[1]]) for name in told[0]))
        self.params, self.config = FLEET.params(), FLEET.config(len(rows), records=False)
        self.workload = to_device(table, prediction, dt=DT, ageing=FLEET.ageing, spf_edges=FLEET.spf_edges)
        self.empty = initial_state(self.config, self.params, self.workload)
        self.priority, self.prompt = np.asarray(self.workload.priority), table.prompt_tokens.astype(np.int32)
        self.waiting: list[int] = []
        self.there: dict[int, tuple[int, int]] = {}
        self.arrived = self.dispatched = 0
        self.metrics: dict[str, Any] = {}
        self.read_s: dict[str, float] = {}

    def hear(self, event: Heard) -> None:
        if event.what == "scraped":
            self.metrics[event.id], self.read_s[event.id] = event.metrics, event.now_s
            return
        row = self.row_of[event.id]
        if event.what == "arrive":
            self.waiting.append(row)
            self.arrived += 1
        elif event.what == "placed" and event.placement is not None:
            self.waiting.remove(row)
            self.there[row] = self.names.index(event.placement.backend), 0
            self.dispatched += 1
        elif event.what == "tokens":
            server, tokens = self.there[row]
            self.there[row] = server, tokens + event.count
        else:
            del self.there[row]

    def state(self, now_s: float) -> ClusterState:
        engines = self.empty.engines
        request, generated = np.array(engines.queue.request), np.array(engines.queue.generated)
        count, tokens, first, first_tokens = np.zeros((4, SERVERS), np.int32)
        for row, (server, seen) in self.there.items():
            request[server, count[server]], generated[server, count[server]] = row, seen
            count[server] += 1
            tokens[server] += self.prompt[row] + seen
            first[server] += not seen
            first_tokens[server] += 0 if seen else self.prompt[row]
        queue = engines.queue.replace(request=request, generated=generated, count=count)
        held = np.full(len(self.prompt), NEVER, np.int32)
        held[self.waiting] = self.priority[self.waiting]
        read = [self.metrics[name] for name in self.names]
        return self.empty.replace(
            now=np.int32((now_s - self.start_s) / DT),
            arrived=np.int32(self.arrived),
            dispatched=np.int32(self.dispatched),
            held=held,
            engines=engines.replace(
                queue=queue, in_flight_tokens=tokens, awaiting_first=first, awaiting_prompt_tokens=first_tokens
            ),
            scrape=self.empty.scrape.replace(
                # The simulator reads all servers at once; the age that counts is that of the oldest reading.
                step=np.int32((min(self.read_s.values()) - self.start_s) / DT),
                running=np.array([each.running for each in read], np.int32),
                waiting=np.array([each.waiting for each in read], np.int32),
                kv_usage=np.array([each.kv_usage for each in read], np.float32),
            ),
        )


def look(config: ClusterConfig, params: ClusterParams, workload: Workload, state: ClusterState):
    queue = state.engines.queue
    here = jnp.arange(queue.request.shape[1])[None] < queue.count[:, None]
    left = jnp.where(here, predicted_left(workload, queue.request, queue.generated), 0).sum(axis=1, dtype=jnp.int32)
    state = state.replace(engines=state.engines.replace(queue=queue.replace(predicted_left=left)))
    seen = observe(router_view(config, params, workload, state), "rich", jnp)
    return seen.router, seen.instances, head_of(workload, state)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Heard]]:
    path = tmp_path_factory.mktemp("live") / "decisions.jsonl"
    return path, asyncio.run(record(path, count=80))


def test_the_simulators_view_of_a_live_run_gives_the_features_that_were_logged(live: tuple[Path, list[Heard]]) -> None:
    path, heard = live
    logged: dict[str, LogRow] = {row.id: row for row in read_log(path)}
    assert len(logged) == 80
    replay, jitted = Replay(path, heard), jax.jit(look, static_argnums=0)
    compared, queued, streaming = 0, 0, 0
    for event in heard:
        if event.what == "placed":
            row, state = logged[event.id], replay.state(event.now_s)
            assert row.names == replay.names
            router, instances, head = jitted(replay.config, replay.params, replay.workload, state)
            assert int(head) == replay.row_of[event.id]
            # Waits and ages are as good as DT.
            np.testing.assert_allclose(row.router_features, router, rtol=1e-5, atol=2 * DT)
            np.testing.assert_allclose(row.instance_features, instances, rtol=1e-5, atol=1e-5)
            compared += 1
            queued = max(queued, len(replay.waiting))
            streaming = max(streaming, sum(tokens > 0 for _, tokens in replay.there.values()))
        replay.hear(event)
    # All of them, while much was under way.
    assert compared == 80
    assert streaming > 5
    assert queued >= 1
    assert {row.decided_by for row in logged.values()} & {"policy"}
