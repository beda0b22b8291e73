"""A server of `ray.serve.llm` that tells its routers how busy its vLLM engine is."""

from __future__ import annotations

from typing import Any

from prometheus_client import REGISTRY, generate_latest
from ray.serve.llm.deployment import LLMServer

from jaxroute.errors import InputError
from jaxroute.serve.ray_report import vllm_report
from jaxroute.serve.scrape import CACHE_CONFIG, KV_USAGE, RUNNING, WAITING

METRICS = (RUNNING, WAITING, KV_USAGE, CACHE_CONFIG)


class JaxrouteLLMServer(LLMServer):
    """`LLMConfig(server_cls="jaxroute.serve.ray_llm:JaxrouteLLMServer", log_engine_metrics=False, ...)`.

    Only where vLLM does not send its metrics to Ray (`log_engine_metrics`) can they be read here. Without them the
    routers decide by what they know themselves, and count that as a fallback.
    """

    async def record_routing_stats(self) -> dict[str, Any]:
        """Those of Ray's server, if it has any, and the engine's load."""
        before = getattr(super(), "record_routing_stats", None)
        stats = {} if before is None else dict(await before())
        try:
            return stats | vllm_report(generate_latest(REGISTRY.restricted_registry(METRICS)).decode())
        except InputError:
            return stats
