"""Seconds that the endpoint picker takes to decide: a gRPC client in Envoy's place, at a steady rate.

    .venv/bin/python tests/measure/picker_latency.py [--rate 1000] [--seconds 10] [--policy default]

One process of cheap backends, one of the picker, this one the client, whose own delays are part of what it sees. What
the picker itself says of its decisions, features included, is read from its metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
import urllib.request
from collections.abc import Mapping

import grpc
import numpy as np
import uvloop
from added_latency import HERE, cpu_s, free_ports, running
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProtocolConfiguration,
)
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorStub
from rich.console import Console
from rich.table import Table

BODY = json.dumps({"model": "m", "prompt": "word " * 60, "max_tokens": 8, "stream": True}).encode()
CHANNELS = 4


def _headers(values: dict[str, str], *, end: bool) -> HttpHeaders:
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in values.items()]
    return HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=end)


BEGIN = ProcessingRequest(
    request_headers=_headers(
        {
            ":method": "POST",
            ":path": "/v1/completions",
            ":authority": "gateway",
            "content-type": "application/json",
            "content-length": str(len(BODY)),
            "user-agent": "measure",
            "x-request-id": "0123456789abcdef",
        },
        end=False,
    ),
    protocol_config=ProtocolConfiguration(
        request_body_mode=ProcessingMode.BUFFERED, response_body_mode=ProcessingMode.STREAMED
    ),
)
WHOLE = ProcessingRequest(request_body=HttpBody(body=BODY, end_of_stream=True))
ANSWERED = ProcessingRequest(response_headers=_headers({":status": "200"}, end=True))


async def one(stub: ExternalProcessorStub, times: list[tuple[float, float]]) -> None:
    """One request; its seconds from its body, and from its first message, to the destination."""
    call = stub.Process()
    started = time.perf_counter()
    await call.write(BEGIN)
    await call.read()
    sent = time.perf_counter()
    await call.write(WHOLE)
    answer = await call.read()
    now = time.perf_counter()
    if not answer.HasField("request_body"):
        raise RuntimeError(f"not placed: {answer}")
    times.append((now - sent, now - started))
    await call.write(ANSWERED)
    await call.read()
    await call.done_writing()
    await call.read()


async def load(port: int, rate: float, seconds: float) -> np.ndarray:
    """[requests, 2] seconds, of Poisson arrivals at `rate`."""
    rng, times, tasks = random.Random(0), [], []
    async with contextlib.AsyncExitStack() as stack:
        # Of their own sockets, as those of Envoy's threads are.
        options = [("grpc.use_local_subchannel_pool", 1)]
        opened = [grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) for _ in range(CHANNELS)]
        stubs = [ExternalProcessorStub(await stack.enter_async_context(each)) for each in opened]
        due = start = time.perf_counter()
        while due < start + seconds:
            due += rng.expovariate(rate)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(stubs[len(tasks) % CHANNELS], times)))
        await asyncio.gather(*tasks)
    return np.asarray(times)


def metrics_of(admin: str) -> str:
    """What a picker says of itself."""
    with urllib.request.urlopen(f"{admin}/metrics", timeout=5) as response:
        return str(response.read().decode())


def _decisions(metrics: str) -> dict[float, float]:
    """Decisions by their most seconds, cumulative, of the picker's own histogram."""
    found = [line for line in metrics.splitlines() if line.startswith("jaxroute_decision_seconds_bucket")]
    return {float(line.split('le="')[1].split('"')[0]): float(line.rsplit(" ", 1)[1]) for line in found}


def show(title: str, times: Mapping[str, np.ndarray], before: str, after: str, spent_s: float) -> None:
    """Shows what was measured.

    Args:
      title: above it.
      times: seconds of every request, by what they are.
      before, after: the picker's metrics.
      spent_s: of CPU by the picker, a request.
    """
    table = Table(title=title)
    for column in ("what", "p50", "p90", "p99", "p99.9"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, seconds in times.items():
        table.add_row(name, *(f"{1e3 * np.percentile(seconds, q):.2f}" for q in (50, 90, 99, 99.9)))
    console = Console(width=120)
    console.print(table)
    first, last = _decisions(before), _decisions(after)
    counted = {most: last[most] - first.get(most, 0) for most in last}
    shares = {most: count / counted[float("inf")] for most, count in counted.items()}
    bounds = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
    within = ", ".join(f"{100 * shares[most]:.2f} % within {1e3 * most:g} ms" for most in bounds)
    console.print(f"the decision alone, as the picker has it: {within}")
    console.print(f"CPU of the picker: {1e3 * spent_s:.2f} ms a request")


def options(description: str | None) -> argparse.Namespace:
    """What the command line says of rate, seconds, backends and policy."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--backends", type=int, default=4)
    parser.add_argument("--policy", default="default")
    return parser.parse_args()


def light_backends(ports: list[int]) -> list[str]:
    """The command of cheap backends."""
    return [sys.executable, str(HERE / "light_backend.py"), "0.005", "0.005", *map(str, ports)]


def main() -> None:
    """Starts all, measures, shows."""
    asked = options(__doc__)
    *ports, port, admin_port = free_ports(asked.backends + 2)
    light = light_backends(ports)
    picker = [sys.executable, "-m", "jaxroute", "epp", "--predictor", "none", "--log-level", "warning"]
    picker += ["--policy", asked.policy, "--port", str(port), "--admin-port", str(admin_port)]
    picker += [word for each in ports for word in ("--backend", f"http://127.0.0.1:{each}")]
    admin = f"http://127.0.0.1:{admin_port}"
    with running(light, f"http://127.0.0.1:{ports[0]}/v1/models"), running(picker, f"{admin}/ready") as process:
        uvloop.run(load(port, min(asked.rate, 100), 2.0))
        before, spent = metrics_of(admin), cpu_s(process.pid)
        times = uvloop.run(load(port, asked.rate, asked.seconds))
        spent, after = cpu_s(process.pid) - spent, metrics_of(admin)
    rows = dict(zip(("body to destination", "first message to destination"), times.T, strict=True))
    title = f"{len(times)} requests at {asked.rate:g}/s, {asked.policy}; milliseconds"
    show(title, rows, before, after, spent / len(times))


if __name__ == "__main__":
    main()
