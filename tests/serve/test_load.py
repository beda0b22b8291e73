"""A thousand streams at once for a minute, router and servers in processes of their own."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from serve.harness import completion
from serve.test_operations import command

STREAMS, SECONDS, TOKENS = 1000, 60.0, 40

SERVERS = """
import asyncio, sys
from fake_vllm import FakeVllm
async def main():
    servers = [FakeVllm(speed=0.1, profile="h100-80gb-llama31-8b") for _ in range(4)]
    for server in servers:
        await server.start()
    print(*(server.url for server in servers), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def resident_mib(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) / 1024


@pytest.mark.slow
async def test_a_thousand_streams_are_whole_and_memory_stays_flat() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    servers = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVERS, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    try:
        assert servers.stdout is not None
        urls = (await servers.stdout.readline()).decode().split()
        backends = [option for url in urls for option in ("--backend", url)]
        async with command(*backends, "--policy", "round-robin") as (process, listening):
            url = f"http://127.0.0.1:{listening['port']}/v1/completions"
            assert process.stderr is not None
            logs = asyncio.create_task(process.stderr.read())
            done, wrong, memory = await _load(url, process.pid)
            logs.cancel()
    finally:
        servers.kill()
        await servers.wait()
    assert wrong == []
    assert done >= STREAMS
    assert memory[-1] < memory[len(memory) // 3] * 1.1 + 5


async def _load(url: str, pid: int) -> tuple[int, list[bytes], list[float]]:
    """Streams one after the other, a thousand side by side: how many, the wrong ones, the router's memory in MiB."""
    done, wrong, memory = 0, [], []
    end = time.monotonic() + SECONDS
    expected: list[bytes] = []

    async def one(client: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.monotonic() < end:
            async with client.post(url, json=completion(TOKENS, stream=True)) as response:
                body = await response.read()
            if not expected:
                expected.append(body)
            if body != expected[0] or not body.endswith(b"[DONE]\n\n"):
                wrong.append(body)
            done += 1

    async def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident_mib(pid))
            await asyncio.sleep(1)

    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as client:
        await asyncio.gather(watch(), *(one(client) for _ in range(STREAMS)))
    assert all(f" w{number}é".encode() in expected[0] for number in range(TOKENS))
    print(f"{done} streams, memory {memory[0]:.0f} to {memory[-1]:.0f} MiB")
    return done, wrong, memory
