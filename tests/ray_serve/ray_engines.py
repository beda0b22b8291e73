"""`ray.serve.llm` on real vLLM engines for CPU, one router after the other on the same requests.

Started by `compare_ray_routers.py` with the interpreter of an environment that holds vLLM and Ray. The engines are held
to a profile's step time as those of the testbed are; Ray starts them anew for each router, which takes minutes, so a
router plays all rounds in a row, by one handle (of a handful made one after the other, Ray 2.60 left one without a
router).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MODEL, APP = "testbed", "llm"
PREFIX = "ray.serve.llm.request_router.PrefixCacheAffinityRouter"


def read_told(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request whose `user` says how long its prompt is, and what is predicted of its answer."""
    prompt_tokens, told = args[0].user.split(" ")
    return {"prompt": [0] * int(prompt_tokens), "max_tokens": args[0].max_tokens, "predicted_tokens": told}


def router_of(name: str, profile: str) -> Any:
    """What a deployment is told to have that router."""
    from ray.serve.config import RequestRouterConfig

    from jaxroute.serve.ray import router_config

    if name == "ray:power-of-two":
        return RequestRouterConfig()
    if name == "ray:prefix-affinity":
        return RequestRouterConfig(request_router_class=PREFIX, request_router_kwargs={"imbalanced_threshold": 5})
    policy = name.removeprefix("jaxroute:")
    return router_config(policy=policy, profile=profile, predictor="none", read="ray_engines:read_told")


def llm_config(given: Mapping[str, Any]) -> Any:
    """Engines of the testbed's kind within replicas."""
    from ray.serve.llm import LLMConfig

    profile = given["profile"]
    return LLMConfig(
        model_loading_config={"model_id": MODEL, "model_source": given["model"]},
        server_cls="ray_held_server:HeldServer",
        accelerator_config={"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": 0.1}]},
        log_engine_metrics=False,
        engine_kwargs={
            "load_format": "dummy",
            "dtype": "bfloat16",
            "generation_config": "vllm",
            "max_model_len": profile["max_model_len"],
            "max_num_seqs": profile["max_num_seqs"],
            "max_num_batched_tokens": profile["max_num_batched_tokens"],
            "block_size": profile["block_size"],
            "num_gpu_blocks_override": profile["kv_blocks"] + 1,
            "scheduler_cls": "ray_scheduler.PatientScheduler",
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "async_scheduling": False,
        },
        deployment_config={
            "num_replicas": given["instances"],
            "max_ongoing_requests": 1000,
            "ray_actor_options": {"num_cpus": 0.1},
        },
    )


async def send_all(handle: Any, due_s: Sequence[float], asked: Sequence[Mapping[str, Any]]) -> list[float]:
    """E2E of each request, seconds."""
    from ray.serve.llm.openai_api_models import CompletionRequest

    start = time.perf_counter() + 0.2 - due_s[0]
    fields = {"model": MODEL, "ignore_eos": True, "temperature": 0.0}

    async def send(due: float, each: Mapping[str, Any]) -> float:
        request = CompletionRequest(**fields, **each)
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        pieces = [piece async for piece in handle.options(stream=True).completions.remote(request)]
        assert pieces[-1].usage.completion_tokens == each["max_tokens"], pieces[-1]
        return time.perf_counter() - start - due

    return await asyncio.gather(*(send(due, each) for due, each in zip(due_s, asked, strict=True)))


def main(place: Path) -> None:
    """Runs all turns that a file names, and writes what they took beside it."""
    import ray
    from ray import serve
    from ray.serve.handle import DeploymentHandle
    from ray.serve.llm import build_llm_deployment

    given = json.loads(place.read_text(encoding="utf-8"))
    profile = str(place.with_name("profile.json"))
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    took: list[dict[str, Any]] = []
    for name in given["routers"]:
        options = {"request_router_config": router_of(name, profile), "name": "engines"}
        serve.run(build_llm_deployment(llm_config(given), override_serve_options=options), name=APP, route_prefix=None)
        handle = DeploymentHandle("engines", APP)
        asyncio.run(send_all(handle, [0.0, 0.2, 0.4, 0.6], given["rounds"][0]["asked"][:4]))
        for number, one in enumerate(given["rounds"]):
            begin = time.perf_counter()
            e2e_s = asyncio.run(send_all(handle, one["due_s"], one["asked"]))
            router = handle._router._asyncio_router.request_router
            counts = dict(router.fleet.dispatcher.brain.counts) if hasattr(router, "fleet") else {}
            took.append({"round": number, "router": name, "e2e_s": e2e_s, "begin": begin, "counts": counts})
            took[-1]["end"] = time.perf_counter()
            place.with_name("took.json").write_text(json.dumps(took), encoding="utf-8")
            print(f"round {number} {name}: mean {sum(e2e_s) / len(e2e_s):.3f} s {counts}", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    main(Path(sys.argv[1]))
