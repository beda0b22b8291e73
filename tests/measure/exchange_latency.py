"""Seconds that the endpoint picker takes by itself: its exchanges at a steady rate, with messages in memory, no gRPC.

    .venv/bin/python tests/measure/exchange_latency.py [--rate 1000] [--seconds 10] [--policy default]

Messages are read from bytes and written to bytes, as gRPC has it. A request counts from when it was due, so that its
waits within this process are part of what it takes. `picker_latency.py` has the same requests by gRPC.
"""

from __future__ import annotations

import asyncio
import random
import time

import grpc
import numpy as np
import uvloop
from added_latency import free_ports, running
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest
from picker_latency import ANSWERED, BEGIN, WHOLE, light_backends, options, show
from prometheus_client import generate_latest

from jaxroute.epp.desk import Desk
from jaxroute.epp.exchange import Exchange
from jaxroute.serve.config import BackendConfig, ServeConfig
from jaxroute.serve.core import Core

MESSAGES = [message.SerializeToString() for message in (BEGIN, WHOLE, ANSWERED)]
DESTINATION = 2
"""Number of the answer that names it."""


async def one(desk: Desk, due: float, times: list[tuple[float, ...]]) -> None:
    """One request; its seconds from when it was due to its destination."""
    coming, answers = iter(MESSAGES), 0

    async def read() -> object:
        data = next(coming, None)
        return grpc.aio.EOF if data is None else ProcessingRequest.FromString(data)

    async def write(message: ProcessingRequest) -> None:
        nonlocal answers
        message.SerializeToString()
        answers += 1
        if answers == DESTINATION:
            times.append((time.perf_counter() - due,))

    await Exchange(desk, read, write).run()


async def load(desk: Desk, rate: float, seconds: float) -> np.ndarray:
    """[requests, 1] seconds, of Poisson arrivals at `rate`."""
    rng, times, tasks = random.Random(0), list[tuple[float, ...]](), []
    due = start = time.perf_counter()
    while due < start + seconds:
        due += rng.expovariate(rate)
        while (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(desk, due, times)))
    await asyncio.gather(*tasks)
    if len(times) != len(tasks):
        raise RuntimeError(f"{len(tasks) - len(times)} of {len(tasks)} requests were not placed")
    return np.asarray(times)


async def measured(urls: list[str], policy: str, rate: float, seconds: float) -> None:
    """Starts the picker's inside, measures, shows."""
    core = Core(ServeConfig(tuple(map(BackendConfig, urls)), policy=policy, predictor="none"))
    await core.start()
    try:
        desk = Desk(core)
        await desk.endpoints.refresh()
        await load(desk, min(rate, 100), 2.0)
        before, spent = generate_latest(core.telemetry.registry).decode(), time.process_time()
        times = await load(desk, rate, seconds)
        spent = time.process_time() - spent
        after = generate_latest(core.telemetry.registry).decode()
    finally:
        core.dispatcher.close()
        await core.stop()
    title = f"{len(times)} requests at {rate:g}/s, {policy}, no gRPC; milliseconds"
    show(title, {"due to destination": times[:, 0]}, before, after, spent / len(times))


def main() -> None:
    """Starts backends, measures, shows."""
    asked = options(__doc__)
    ports = free_ports(asked.backends)
    urls = [f"http://127.0.0.1:{each}" for each in ports]
    with running(light_backends(ports), f"{urls[0]}/v1/models"):
        uvloop.run(measured(urls, asked.policy, asked.rate, asked.seconds))


if __name__ == "__main__":
    main()
