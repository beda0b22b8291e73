"""Clients that mean no good, keys, TLS: a 4xx, never a crash, never a leak."""

from __future__ import annotations

import asyncio
import io
import logging
import ssl
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest

from fake_vllm import FakeVllm
from jaxroute.serve.config import BackendConfig, Limits, Listener, Timeouts
from jaxroute.serve.log import set_up_logs
from serve.harness import completion, raw, service, until

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"null",
        b'{"prompt": "\xff\xfe"}',
        b'{"stream": "yes"}',
        b'{"model": 3}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_no_request_is_a_400(body: bytes) -> None:
    async with service(1) as s:
        reply = await s.post(data=body, headers=JSON)
        assert reply.status == 400
        assert reply.json["error"]["type"] == "invalid_request_error"
        assert s.servers[0].seen == []
        assert (await s.post(completion(1))).status == 200


async def test_a_body_with_half_a_character_passes_as_it_is() -> None:
    async with service(1) as s:
        reply = await s.post(data=b'{"prompt": "\\ud800", "max_tokens": 1}', headers=JSON)
        assert reply.status == 200


async def test_a_large_body_is_a_413_whether_its_length_is_stated_or_not() -> None:
    async def pieces() -> object:
        for _ in range(100):
            yield b"x" * 2**20

    async with service(1, limits=Limits(body_bytes=2**20)) as s:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
        assert b" 413 " in (await raw(s.router.port, head, wait_s=1)).splitlines()[0]
        try:
            reply = await s.post(data=pieces(), headers=JSON)
            assert reply.status == 413
        except aiohttp.ClientConnectionError:
            pass
        assert (await s.post(completion(1))).status == 200
        assert len(s.servers[0].seen) == 1


async def test_a_header_that_trickles_in_ends_with_the_connection() -> None:
    async with service(1, timeouts=Timeouts(client_idle_s=0.3)) as s:
        reader, writer = await asyncio.open_connection("127.0.0.1", s.router.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\n")
        start, answer = time.monotonic(), asyncio.create_task(reader.read())
        while not answer.done() and time.monotonic() - start < 5:
            writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.02)
        assert answer.done(), "the connection is open for ever"
        assert 0.2 < time.monotonic() - start < 3
        # A reset, where it was closed while a byte was under way to it.
        assert isinstance(answer.exception(), ConnectionResetError) or answer.result() == b""
        writer.close()
        assert s.servers[0].seen == []
        assert (await s.post(completion(1))).status == 200


async def test_a_body_that_trickles_in_is_a_408() -> None:
    async with service(1, timeouts=Timeouts(body_s=0.3)) as s:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        assert b" 408 " in (await raw(s.router.port, head, wait_s=3)).splitlines()[0]


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: a\rb\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: a\x00b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /v1/" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
)
async def test_what_is_no_http_is_a_400(data: bytes) -> None:
    async with service(1, timeouts=Timeouts(client_idle_s=0.5)) as s:
        answer = await raw(s.router.port, data, wait_s=2)
        assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:200]
        assert s.servers[0].seen == []
        assert (await s.post(completion(1))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/admin/reload",
        "/v1/../metrics",
        "/v1/%2e%2e/metrics",
        "/v1/a/..%2fmetrics",
        "/v1//x",
        "/v1/.hidden",
        "/v1/a\\b",
        "/v1/x%0d%0aX-Evil:%201",
        "/v1/load_lora_adapter",
        "/v2/x",
    ],
)
async def test_other_paths_of_the_backends_cannot_be_reached(path: str) -> None:
    async with service(1) as s:
        seen = s.servers[0].seen
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        status = (await raw(s.router.port, head, wait_s=2)).split(b" ")[1]
        assert status in (b"404", b"405", b"400")
        assert seen == []


async def test_a_key_is_asked_for_and_does_not_reach_the_backends(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nsecret-1\nsecret-2\n")
    (tmp_path / "backend").write_text("backend-secret\n")
    server = FakeVllm(key="backend-secret")
    async with server:
        backend = BackendConfig(server.url, name="server-0", key_file=tmp_path / "backend")
        async with service([], backends=(backend,), keys_file=tmp_path / "keys") as s:
            for wrong in (
                {},
                {"Authorization": "Bearer secret"},
                {"Authorization": "secret-1"},
                {"Authorization": "Bearer "},
            ):
                reply = await s.post(completion(1), headers=wrong)
                assert reply.status == 401
                assert reply.json["error"]["type"] == "authentication_error"
            assert (await s.get("/v1/models")).status == 401
            assert server.seen == []
            for right in ("Bearer secret-1", "bearer secret-2"):
                assert (await s.post(completion(1), headers={"Authorization": right})).status == 200
            assert {seen.headers["Authorization"] for seen in server.seen} == {"Bearer backend-secret"}
            assert (await s.get("/health")).status == 200


async def test_no_prompt_and_no_key_is_in_logs_or_metrics(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("very-secret")
    text = io.StringIO()
    logs = set_up_logs("debug", text)
    async with service(2, keys_file=tmp_path / "keys") as s:
        headers = {"Authorization": "Bearer very-secret", "X-Request-Id": "seen-1"}
        for fault in (None, "cut", "500"):
            s.servers[0].break_with(fault)
            for stream in (True, False):
                await s.post(completion(4, stream=stream, prompt="PRIVATE words"), headers=headers)
        await s.post(data=b'{"prompt": "PRIVATE', headers={**headers, **JSON})
        logs.close()
        shown = text.getvalue() + await s.metrics() + (await s.get("/admin/backends", admin=True)).body.decode()
    assert "seen-1" in shown
    assert "PRIVATE" not in shown
    assert "very-secret" not in shown


async def test_an_error_of_the_routers_own_says_nothing_and_the_router_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with service(1) as s:
        with monkeypatch.context() as patched:
            patched.setattr("jaxroute.serve.proxy.request_id_of", lambda headers: 1 / 0)
            with caplog.at_level(logging.CRITICAL):
                reply = await s.post(completion(1))
        assert reply.status == 500
        assert b"ZeroDivision" not in reply.body
        assert (await s.post(completion(1))).status == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    options = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    try:
        subprocess.run(
            ["openssl", *options.split(), "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("openssl is not here")
    return folder


async def test_tls_on_both_sides(certificate: Path) -> None:
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    server = FakeVllm()
    server.ssl = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.ssl.load_cert_chain(cert, key)
    trusted = ssl.create_default_context(cafile=str(cert))
    async with server:
        good = BackendConfig(server.url, name="good", ca_file=cert)
        listen = Listener("127.0.0.1", 0, cert, key)
        async with service([], backends=(good,), listen=listen) as s:
            url = f"https://127.0.0.1:{s.router.port}/v1/completions"
            async with s.client.post(url, json=completion(3, stream=True), ssl=trusted) as response:
                assert response.status == 200
                assert (await response.read()).endswith(b"[DONE]\n\n")
        async with service([], backends=(BackendConfig(server.url, name="untrusted"),)) as s:
            assert (await s.post(completion(1))).status == 503
        assert len(server.seen) == 1


async def test_bodies_that_are_too_large_together_are_a_503_until_some_are_through() -> None:
    async with service([FakeVllm(speed=1)], limits=Limits(held_bytes=50_000)) as s:
        large = completion(200, prompt="x" * 30_000)
        first = asyncio.create_task(s.post(large))
        await until(lambda: bool(s.servers[0].engine.running))
        refused = await s.post(large)
        assert (refused.status, refused.json["error"]["code"]) == (503, "bodies")
        assert refused.headers["Retry-After"] == "1"
        assert (await s.post(completion(2))).status == 200
        assert (await first).status == 200
        assert (await s.post(completion(2, prompt="x" * 30_000))).status == 200


async def test_a_web_page_cannot_make_the_router_reload() -> None:
    async with service(1) as s:
        url = f"{s.admin}/admin/reload"
        async with s.client.post(url, headers={"Origin": "http://evil.example"}) as reply:
            assert reply.status == 403
        async with s.client.post(url) as reply:
            assert reply.status == 200


@pytest.mark.parametrize(("keys", "warnings"), [(None, 2), ("secret", 1)])
async def test_listeners_that_others_reach_are_warned_of(
    keys: str | None, warnings: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if keys:
        monkeypatch.setenv("KEYS_OF_A_TEST", keys)
    everywhere = Listener("0.0.0.0", 0)
    async with service(1, listen=everywhere, admin=everywhere, keys_env="KEYS_OF_A_TEST" if keys else None):
        assert sum("whoever reaches" in each.message for each in caplog.records) == warnings


async def test_listeners_of_this_machine_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with service(1):
        assert not any("whoever reaches" in each.message for each in caplog.records)
