"""A router as an operator meets it: the command, its signals, reload, drain, metrics, shadow mode."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from fake_vllm import FakeVllm
from jaxroute.errors import InputError
from jaxroute.serve.app import Router
from jaxroute.serve.config import Limits, Listener, ServeConfig, Timeouts
from jaxroute.serve.decision_log import read_log
from serve.harness import completion, config_of, service, text_of, until

NO_JAX = """
import sys
from jaxroute.cli import main
try:
    main(["serve", "--help"])
except SystemExit:
    pass
import jaxroute.serve.run
from jaxroute.commands.serve import Serve
from jaxroute.predictor.service import PredictionService
PredictionService.load().close()
import jaxroute.serve.app as app
app.Router(Serve(backend=("http://127.0.0.1:1",)).read())
print([name for name in ("jax", "flax", "matplotlib", "scipy", "transformers") if name in sys.modules])
"""


def test_the_serving_path_imports_no_jax() -> None:
    done = subprocess.run([sys.executable, "-c", NO_JAX], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@asynccontextmanager
async def command(*options: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, object]]]:
    """`jaxroute serve` as a process, and its line that says where it listens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "jaxroute.cli", "serve", "--port", "0", "--admin-port", "0", "--predictor", "none", *options),
        stderr=subprocess.PIPE,
    )
    try:
        yield process, await line(process, "listening")
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    assert process.stderr is not None
    seen = []
    while text := await process.stderr.readline():
        seen.append(text)
        if text.startswith(b"{") and (data := json.loads(text))["event"] == event:
            return data
    raise AssertionError(seen)


async def test_the_command_serves_reloads_and_drains(tmp_path: Path) -> None:
    async with FakeVllm(speed=0.5) as first, FakeVllm() as second, aiohttp.ClientSession() as client:
        path = tmp_path / "serve.yaml"
        path.write_text(f"backends: [{first.url}]\npolicy: default\n")
        async with command("--config", str(path)) as (process, listening):
            url = f"http://127.0.0.1:{listening['port']}"
            stream = await client.post(f"{url}/v1/completions", json=completion(60, stream=True))
            path.write_text(f"backends: [{second.url}]\n")
            process.send_signal(signal.SIGHUP)
            assert (await line(process, "reloaded"))["backends"] == [f"127.0.0.1:{second.port}"]
            await line(process, "backend up")
            async with client.post(f"{url}/v1/completions", json=completion(2)) as response:
                assert response.headers["X-Jaxroute-Backend"] == f"127.0.0.1:{second.port}"
            path.write_text("backends: [nonsense]\n")
            process.send_signal(signal.SIGHUP)
            assert "nonsense" in str((await line(process, "not reloaded"))["reason"])
            process.send_signal(signal.SIGTERM)
            await line(process, "draining")
            body = await stream.read()
            assert body.endswith(b"data: [DONE]\n\n")
            async with asyncio.timeout(10):
                assert await process.wait() == 0


async def test_the_command_ends_with_one_line_where_something_is_wrong() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *("-m", "jaxroute.cli", "serve", "--backend", "nonsense"), stderr=subprocess.PIPE
    )
    _, text = await process.communicate()
    assert process.returncode == 2
    assert text.decode().startswith("jaxroute: backend 'nonsense'")
    assert len(text.splitlines()) == 1


async def test_a_port_that_is_taken_is_one_line() -> None:
    async with service(1) as s:
        config = config_of([s.servers[0].url], listen=Listener("127.0.0.1", s.router.port))
        other = Router(config)
        try:
            with pytest.raises(InputError, match="choose another port"):
                await other.start()
        finally:
            await other.stop()


async def test_a_reload_changes_backends_and_keys_and_drops_no_stream(tmp_path: Path) -> None:
    async with FakeVllm() as third:
        current: list[ServeConfig] = []
        async with service([FakeVllm(speed=0.5), FakeVllm()], read=lambda: current[0]) as s:
            stream = asyncio.create_task(s.post(completion(60, stream=True)))
            await until(lambda: s.servers[0].engine.running)
            (tmp_path / "keys").write_text("key")
            new = config_of([s.servers[1].url, third.url], keys_file=tmp_path / "keys", log_level="debug")
            backends = [
                dataclasses.replace(each, name=name) for each, name in zip(new.backends, ("b", "c"), strict=True)
            ]
            current.append(dataclasses.replace(new, backends=tuple(backends)))
            async with s.client.post(f"{s.admin}/admin/reload") as response:
                assert response.status == 200
                assert await response.json() == {"backends": ["b", "c"], "needs_restart": ["log_level"]}
            assert (await s.post(completion(1))).status == 401
            await until(lambda: all(each.is_open for each in s.router.dispatcher.status()))
            headers = {"Authorization": "Bearer key"}
            replies = [await s.post(completion(1), headers=headers) for _ in range(4)]
            assert {reply.headers["X-Jaxroute-Backend"] for reply in replies} == {"b", "c"}
            assert text_of((await stream).events) == FakeVllm.words(0, 60)


async def test_a_reload_that_is_wrong_changes_nothing() -> None:
    def wrong() -> ServeConfig:
        raise InputError("file: key: mend it")

    async with service(1, read=wrong) as s:
        async with s.client.post(f"{s.admin}/admin/reload") as response:
            assert response.status == 400
            assert "mend it" in (await response.json())["error"]["message"]
        assert (await s.post(completion(1))).status == 200


async def test_administration_and_metrics_are_not_on_the_public_listener() -> None:
    async with service(1) as s:
        for path in ("/metrics", "/admin/backends"):
            assert (await s.get(path)).status == 404
            assert (await s.get(path, admin=True)).status == 200
        shown = (await s.get("/admin/backends", admin=True)).json
        assert shown["backends"][0]["open"] is True
        assert shown["backends"][0]["breaker"] == "closed"


async def test_a_drain_lets_requests_finish_and_takes_no_more() -> None:
    async with service([FakeVllm(speed=0.5)]) as s:
        # Two connections, one for the stream and one to ask on while nobody is let in any more.
        await asyncio.gather(s.post(completion(2)), s.post(completion(2)))
        stream = asyncio.create_task(s.post(completion(40, stream=True)))
        await until(lambda: s.servers[0].engine.running)
        drained = asyncio.create_task(s.router.drain())
        await asyncio.sleep(0.05)
        assert (await s.post(completion(1))).status == 503
        with pytest.raises(aiohttp.ClientConnectorError):
            async with aiohttp.ClientSession() as another, another.get(f"{s.url}/health"):
                pass
        assert await drained
        assert (await stream).events[-1] == "[DONE]"


async def test_a_drain_has_an_end() -> None:
    async with service([FakeVllm(speed=0.1)], timeouts=Timeouts(drain_s=0.2)) as s:
        stream = asyncio.create_task(s.post(completion(500, stream=True)))
        await until(lambda: s.servers[0].engine.running)
        assert not await s.router.drain()
        stream.cancel()


async def test_a_full_queue_and_a_long_wait_are_429_with_a_time_to_retry() -> None:
    server = FakeVllm(speed=0.2)
    async with server:
        one = dataclasses.replace(config_of([server.url]).backends[0], max_in_flight=1)
        async with service([], backends=(one,), limits=Limits(queue=2, wait_s=0.3)) as s:
            first = asyncio.create_task(s.post(completion(100)))
            await until(lambda: s.router.dispatcher.status()[0].in_flight == 1)
            waiting = [asyncio.create_task(s.post(completion(1))) for _ in range(2)]
            await until(lambda: s.router.dispatcher.queue_length == 2)
            replies = [await s.post(completion(1)), *[await each for each in waiting]]
            assert [reply.status for reply in replies] == [429] * 3
            assert [reply.json["error"]["code"] for reply in replies] == ["queue-full", "wait-limit", "wait-limit"]
            assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies)
            first.cancel()


async def test_the_default_policy_decides_and_is_logged(tmp_path: Path) -> None:
    async with service(2, policy="default", decision_log=tmp_path / "log.jsonl") as s:
        await until(lambda: all(each.signal_age_s < 1 for each in s.router.dispatcher.status()))
        replies = await asyncio.gather(*(s.post(completion(5, stream=True)) for _ in range(10)))
        assert {reply.status for reply in replies} == {200}
        text = await s.metrics()
    rows = list(read_log(tmp_path / "log.jsonl"))
    assert len(rows) == 10
    assert {row.outcome for row in rows} == {"finished"}
    decided = [row.decided_by for row in rows]
    assert "policy" in decided
    assert 'decided_by="policy"' in text


async def test_without_metrics_the_heuristic_decides_visibly() -> None:
    servers = [FakeVllm(), FakeVllm()]
    for server in servers:
        server.fault = "garbage-metrics"
    async with service(servers, policy="default") as s:
        assert (await s.post(completion(1))).status == 200
        assert await s.metric('jaxroute_fallback_total{reason="missing-signal"}') == 1


async def test_in_shadow_mode_the_heuristic_decides_and_the_policy_is_compared() -> None:
    async with service(2, policy="default", shadow="round-robin") as s:
        await until(lambda: all(each.signal_age_s < 1 for each in s.router.dispatcher.status()))
        for _ in range(6):
            await s.post(completion(2))
        text = await s.metrics()
        assert 'decided_by="round-robin"' in text
        agrees = [await s.metric(f'jaxroute_shadow_total{{agrees="{agrees}"}}') for agrees in ("true", "false")]
        assert sum(agrees) == 6


async def test_the_shipped_predictor_is_asked_and_its_failures_are_counted() -> None:
    async with service(1, predictor="default") as s:
        for _ in range(3):
            assert (await s.post(completion(2, prompt="Translate to French: good morning"))).status == 200
        assert (await s.post(completion(2, prompt=[1, 2, 3]))).status == 200
        sources = [await s.metric(f'jaxroute_predictions_total{{source="{name}"}}') for name in ("cache", "network")]
        # On a busy machine it may be late, which is a fallback too.
        late = await s.metric('jaxroute_fallback_total{reason="predictor-timeout"}')
        assert sum(sources) + late == 3
        assert await s.metric('jaxroute_fallback_total{reason="predictor-no-text"}') == 1


async def test_metrics_hold_what_an_operator_needs() -> None:
    async with service(2) as s:
        await s.post(completion(3, stream=True))
        await s.post(completion(3))
        text = await s.metrics()
    for name in (
        "jaxroute_requests_total",
        "jaxroute_decisions_total",
        "jaxroute_decision_seconds_bucket",
        "jaxroute_router_wait_seconds_bucket",
        "jaxroute_queue_length",
        "jaxroute_signal_age_seconds",
        "jaxroute_in_flight_requests",
        "jaxroute_in_flight_tokens",
        "jaxroute_ttft_seconds_bucket",
        "jaxroute_e2e_seconds_bucket",
        "jaxroute_backend_up",
        "jaxroute_breaker_state",
    ):
        assert f"\n{name}" in text, name
    assert 'jaxroute_e2e_seconds_count{backend="server-1"} 1.0' in text


async def test_a_fault_while_the_router_starts_is_no_obstacle() -> None:
    server = FakeVllm()
    async with server:
        url = server.url
        await server.stop()
        async with service([], backends=config_of([url]).backends) as s:
            assert (await s.post(completion(1))).status == 503
            await server.start()
            await until(lambda: s.router.dispatcher.status()[0].is_open)
            assert (await s.post(completion(1))).status == 200
