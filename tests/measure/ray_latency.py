"""Seconds that a call through a Ray Serve handle takes, with Ray's default router and with ours, by turns.

    .venv/bin/python tests/measure/ray_latency.py [--rate 50] [--seconds 10] [--rounds 4]

Four replicas that answer at once and report no load of their own, so that Ray's machinery is all that there is.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from jaxroute.serve.ray import load_report, router_config

WAYS = ("ray:power-of-two", "jaxroute:round-robin", "jaxroute:default")
BODY = {"prompt": "Translate to German: good morning", "max_tokens": 64}


class Echo:
    """Answers at once."""

    async def __call__(self, body: dict[str, Any]) -> int:
        """The length of the prompt."""
        return len(body["prompt"])

    def record_routing_stats(self) -> dict[str, Any]:
        """As of an idle engine."""
        return load_report(0, 0, 0.0)


async def turn(handle: DeploymentHandle, rate: float, seconds: float) -> np.ndarray:
    """Seconds that each call took."""
    start = time.perf_counter() + 0.1

    async def call(due: float) -> float:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        begin = time.perf_counter()
        await handle.remote(BODY)
        return time.perf_counter() - begin

    return np.asarray(await asyncio.gather(*(call(number / rate) for number in range(int(rate * seconds)))))


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=50.0, help="calls per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    took: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    for number in range(given.rounds):
        for way in np.random.default_rng(number).permutation(WAYS).tolist():
            config = RequestRouterConfig() if way.startswith("ray") else router_config(policy=way.partition(":")[2])
            deployment = serve.deployment(
                Echo,
                num_replicas=4,
                max_ongoing_requests=100,
                request_router_config=config,
                ray_actor_options={"num_cpus": 0.1},
            )
            serve.run(deployment.bind(), name="app", route_prefix=None)
            # A handle of its own has a router of its own.
            handle = DeploymentHandle("Echo", "app")
            asyncio.run(turn(handle, given.rate, 2.0))
            took[way].append(asyncio.run(turn(handle, given.rate, given.seconds)))
    serve.shutdown()
    ray.shutdown()
    for way, own in took.items():
        medians, tails = ([1e3 * np.percentile(each, share) for each in own] for share in (50, 99))
        print(
            f"{way}: median {np.median(medians):.1f} ms ({min(medians):.1f} to {max(medians):.1f}), "
            f"p99 {np.median(tails):.1f} ms ({min(tails):.1f} to {max(tails):.1f})"
        )


if __name__ == "__main__":
    main()
