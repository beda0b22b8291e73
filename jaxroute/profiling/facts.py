"""What a server says of itself: model, version, KV cache, and what it has done so far."""

from __future__ import annotations

import dataclasses
import json

from prometheus_client.parser import text_string_to_metric_families

from jaxroute.errors import InputError, first_line
from jaxroute.profiling.client import Server

CACHE_CONFIG = "vllm:cache_config_info"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
PROMPT, GENERATED = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
PREEMPTIONS, PREFIX_HITS = "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total"

_SUMS = (RUNNING, WAITING, PROMPT, GENERATED, PREEMPTIONS, PREFIX_HITS)


@dataclasses.dataclass(frozen=True)
class Metrics:
    """A reading of `/metrics`.

    Attributes:
      sums: by name, over all labels.
      num_gpu_blocks, block_size: of the KV cache; None where it does not say.
      engines: data-parallel engines behind the address.
    """

    sums: dict[str, float]
    num_gpu_blocks: int | None
    block_size: int | None
    engines: int

    @property
    def in_flight(self) -> int:
        """Requests that run or wait."""
        return round(self.sums[RUNNING] + self.sums[WAITING])


async def read_model(server: Server, asked: str | None) -> tuple[str, int]:
    """Name and `max_model_len` of the model.

    Raises:
      InputError: no such model, or several to choose from.
    """
    place = f"{server.url}/v1/models"
    text = await server.get("/v1/models")
    try:
        listed = json.loads(text or "")["data"]
        models = {entry["id"]: entry.get("max_model_len") for entry in listed}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{place}: lists no models; give the address of a vLLM server") from error
    names = ", ".join(models)
    if asked is None and len(models) != 1:
        raise InputError(f"{place}: lists {names or 'no model'}; choose one with --model")
    name = asked if asked is not None else next(iter(models))
    if name not in models:
        raise InputError(f"--model {name}: {server.url} serves {names}")
    if not isinstance(models[name], int) or models[name] < 1:
        raise InputError(f"{place}: states no max_model_len for {name}; it must be a vLLM server")
    return name, models[name]


async def read_version(server: Server) -> str:
    """The server's version; `unknown` where it does not say."""
    try:
        return str(json.loads(await server.get("/version") or "{}").get("version", "unknown"))
    except (ValueError, AttributeError):
        return "unknown"


async def read_metrics(server: Server) -> Metrics:
    """Reads `/metrics`.

    Raises:
      InputError: there is none, or not of vLLM.
    """
    place = f"{server.url}/metrics"
    text = await server.get("/metrics")
    lines = [line for line in (text or "").splitlines() if line.startswith((*_SUMS, CACHE_CONFIG))]
    sums, engines = dict.fromkeys(_SUMS, 0.0), set()
    blocks: int | None = None
    size: int | None = None
    try:
        for family in text_string_to_metric_families("\n".join(lines)):
            for sample in family.samples:
                if sample.name in sums:
                    sums[sample.name] += sample.value
                if sample.name == RUNNING:
                    engines.add(sample.labels.get("engine", "0"))
                if sample.name == CACHE_CONFIG:
                    blocks = _number(sample.labels.get("num_gpu_blocks"))
                    size = _number(sample.labels.get("block_size"))
    # The parser raises whatever happens to go wrong in it.
    except Exception as error:
        raise InputError(f"{place}: cannot be read ({first_line(error)}); it must be a vLLM server") from error
    if not engines:
        raise InputError(f"{place}: holds no {RUNNING}; give the address of a vLLM server, not of a router before it")
    return Metrics(sums, blocks, size, len(engines))


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
