"""Deployments that the tests of the Ray Serve router call; they run in Ray's own processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from fake_vllm import Engine, Running
from jaxroute.profiles import load_profile
from jaxroute.serve.ray import load_report

PROFILE = "h100-80gb-llama31-8b"


class FakeEngine:
    """A server in a replica, held to a profile's step time; it can fail and die, and need not report."""

    def __init__(self, speed: float = 20.0, *, reports: bool = True) -> None:
        self.engine, self.reports = Engine(load_profile(PROFILE), speed), reports
        self._run: asyncio.Task[None] | None = None
        self.name = serve.get_replica_context().replica_id.unique_id
        self.calls: list[int] = []

    async def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("model") == "broken":
            raise ValueError("the application fails")
        if self._run is None:
            self._run = asyncio.create_task(self.engine.run())
        tokens = int(body.get("max_tokens", 16))
        self.calls.append(tokens)
        request = Running(max(1, len(str(body.get("prompt", ""))) // 4), tokens, asyncio.Queue())
        self.engine.add(request)
        try:
            for _ in range(tokens):
                await request.made.get()
        finally:
            self.engine.remove(request)
        return {"replica": self.name, "tokens": tokens}

    def record_routing_stats(self) -> dict[str, Any]:
        if not self.reports:
            return {}
        running, waiting = len(self.engine.running), len(self.engine.waiting)
        return load_report(running, waiting, min(1.0, self.engine.kv_tokens() / 450_000), kv_tokens=450_000)

    def die(self) -> None:
        os._exit(1)


class Adapters:
    """A server that loads an adapter for each model that it is asked for."""

    def __init__(self) -> None:
        self.name = serve.get_replica_context().replica_id.unique_id

    @serve.multiplexed(max_num_models_per_replica=3)
    async def load(self, model: str) -> str:
        return model

    async def __call__(self, body: Mapping[str, Any]) -> str:
        await self.load(serve.get_multiplexed_model_id())
        await asyncio.sleep(0.02)
        return self.name


class Front:
    """An ingress, whose router is another one than the driver's."""

    def __init__(self, server: Any) -> None:
        self.server = server

    async def __call__(self, request: Any) -> dict[str, Any]:
        body = request if isinstance(request, dict) else await request.json()
        return await self.server.remote(body)
