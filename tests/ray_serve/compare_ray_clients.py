"""Ray Serve's routers and ours in front of real vLLM engines, by turns on the same requests: a program, no test.

    .venv/bin/python tests/ray_serve/compare_ray_clients.py --rounds 3 --requests 180 --rate 24

Four engines of the testbed, a replica in front of each; requests go out through a handle at their own times, however
long others take. Every round has requests of its own, which take every router, in another order each time. Answers come
whole, since Ray's own cost of a stream is too much for two cores that run four engines as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray_clients import Asked, EngineClient

from jaxroute.live.cluster import LiveCluster
from jaxroute.live.prompts import random_prompts
from jaxroute.paired import mean_interval, relative_difference
from jaxroute.profiles import load_profile
from jaxroute.serve.ray import router_config
from jaxroute.testbed import Testbed, TestbedConfig
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

PREFIX = "ray.serve.llm.request_router:PrefixCacheAffinityRouter"

ROUTERS = ("ray:power-of-two", "ray:prefix-affinity", "jaxroute:default", "jaxroute:round-robin")


def config_of(router: str, profile: str) -> RequestRouterConfig:
    """What a deployment is told to have that router."""
    if router == "ray:power-of-two":
        return RequestRouterConfig()
    if router == "ray:prefix-affinity":
        return RequestRouterConfig(request_router_class=PREFIX, request_router_kwargs={"imbalanced_threshold": 5})
    policy = router.removeprefix("jaxroute:")
    return router_config(policy=policy, profile=profile, predictor="none", read="ray_clients:read_asked")


def requests_of(count: int, rate: float, seed: int, longest: int) -> tuple[np.ndarray, list[Asked]]:
    """When requests are due, seconds, and they themselves; those that no engine could hold are left out."""
    table = five_task(count, rate=rate, seed=seed)
    told = predict(table, "0.8", seed=seed)
    columns = (table.arrival_s, random_prompts(table.prompt_tokens), table.output_tokens, told.tokens, told.upper)
    rows = [row for row in zip(*columns, strict=True) if len(row[1]) + row[2] <= longest]
    asked = [
        Asked(" ".join(map(str, ids)), ids, int(output), f"{int(tokens)},{int(upper)}")
        for _, ids, output, tokens, upper in rows
    ]
    return np.asarray([row[0] for row in rows]), asked


async def send_all(handle: serve.handle.DeploymentHandle, due_s: np.ndarray, asked: list[Asked]) -> np.ndarray:
    """E2E of each request, seconds."""
    start = time.perf_counter() + 0.2 - float(due_s[0])

    async def send(due: float, each: Asked) -> float:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        await handle.remote(each)
        return time.perf_counter() - start - due

    return np.asarray(await asyncio.gather(*(send(float(due), each) for due, each in zip(due_s, asked, strict=True))))


def turn(router: str, cluster: LiveCluster, profile: str, due_s: np.ndarray, asked: list[Asked]) -> np.ndarray:
    """E2E of each request through one router, which has no memory of earlier turns."""
    deployment = serve.deployment(
        EngineClient,
        num_replicas=len(cluster.urls),
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0.1},
        request_router_config=config_of(router, profile),
    )
    handle = serve.run(deployment.bind(cluster.urls, cluster.model), name="app", route_prefix=None)
    asyncio.run(send_all(handle, 0.5 * np.arange(4), asked[:4]))
    begin = time.perf_counter()
    took = asyncio.run(send_all(handle, due_s, asked))
    held = cluster.held_steps(begin, time.perf_counter())
    overran = float("nan") if held is None else 100 * held.overrun_share
    p99 = np.percentile(took, 99)
    print(f"  {router}: mean {took.mean():.3f} s, p99 {p99:.2f} s, {overran:.2f} % of steps overran", flush=True)
    serve.delete("app")
    return took


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="v100-32gb-llama2-7b")
    parser.add_argument("--instances", type=int, default=4)
    parser.add_argument("--kv-tokens", type=int, default=3072)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--rate", type=float, default=9.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    routers = given.routers.split(",")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    config = TestbedConfig(profile=load_profile(given.profile), instances=given.instances, kv_tokens=given.kv_tokens)
    took: dict[str, list[np.ndarray]] = {name: [] for name in routers}
    with Testbed(config) as testbed:
        cluster = LiveCluster.of(testbed)
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for number in range(given.rounds):
            due_s, asked = requests_of(given.requests, given.rate, number, cluster.profile.max_model_len)
            print(f"round {number}: {len(asked)} requests", flush=True)
            for name in np.random.default_rng(number).permutation(routers).tolist():
                took[name].append(turn(name, cluster, str(testbed.folder / "profile.json"), due_s, asked))
        ray.shutdown()
    means = {name: np.asarray([each.mean() for each in own]) for name, own in took.items()}
    for name in routers:
        own, other = mean_interval(means[name]), relative_difference(means[name], means[routers[0]])
        p99 = np.mean([np.percentile(each, 99) for each in took[name]])
        print(
            f"{name}: mean E2E {own.value:.3f} s [{own.low:.3f}, {own.high:.3f}], against {routers[0]} "
            f"{other.value:+.1f} % [{other.low:+.1f}, {other.high:+.1f}], p99 {p99:.2f} s"
        )
    if given.out is not None:
        rows = {name: [each.tolist() for each in own] for name, own in took.items()}
        given.out.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
