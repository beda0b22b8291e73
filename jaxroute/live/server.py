"""What a vLLM server says of itself: the model that it serves, its KV cache, how often it has preempted."""

from __future__ import annotations

import dataclasses
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from jaxroute.live.client import LiveError

PREEMPTIONS, CACHE_CONFIG = "vllm:num_preemptions_total", "vllm:cache_config_info"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"

_WANTED = (PREEMPTIONS, CACHE_CONFIG, PREFIX_HITS, RUNNING, WAITING)


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A model that a server serves.

    Attributes:
      name: what requests call it.
      max_model_len: longest prompt + output, tokens; None where the server does not say.
    """

    name: str
    max_model_len: int | None


@dataclasses.dataclass(frozen=True)
class Counters:
    """A reading of a server's `/metrics`, all its engines together.

    Attributes:
      preemptions: so far; a preemption counts when the request runs again.
      prefix_hits: prompt tokens found in the prefix cache so far.
      in_flight: requests that run or wait.
      kv_blocks: usable KV blocks, the one that vLLM keeps left out; None where it does not say.
      block_size: tokens of one; None likewise.
    """

    preemptions: int
    prefix_hits: int
    in_flight: int
    kv_blocks: int | None
    block_size: int | None


async def served_model(session: aiohttp.ClientSession, url: str) -> ServedModel:
    """The first model that the server lists.

    Raises:
      LiveError: it cannot be reached, or lists none.
    """
    data = await _get(session, f"{url}/v1/models", as_json=True)
    try:
        first = data["data"][0]
        return ServedModel(first["id"], first.get("max_model_len"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise LiveError(f"{url}/v1/models: lists no model; give the address of a vLLM server") from error


async def read_counters(session: aiohttp.ClientSession, url: str) -> Counters:
    """Reads `/metrics`.

    Raises:
      LiveError: it cannot be reached, or speaks another format.
    """
    text = await _get(session, f"{url}/metrics", as_json=False)
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    sums: dict[str, float] = dict.fromkeys(_WANTED, 0.0)
    blocks, size = None, None
    try:
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                if sample.name in sums:
                    sums[sample.name] += sample.value
                if sample.name == CACHE_CONFIG:
                    blocks = (blocks or 0) + int(sample.labels["num_gpu_blocks"]) - 1
                    size = int(sample.labels["block_size"])
    # The parser raises whatever happens to go wrong in it.
    except Exception as error:
        raise LiveError(f"{url}/metrics: cannot be read ({error}); give the address of a vLLM server") from error
    return Counters(
        preemptions=round(sums[PREEMPTIONS]),
        prefix_hits=round(sums[PREFIX_HITS]),
        in_flight=round(sums[RUNNING] + sums[WAITING]),
        kv_blocks=blocks,
        block_size=size,
    )


async def _get(session: aiohttp.ClientSession, address: str, *, as_json: bool) -> Any:
    try:
        async with session.get(address) as response:
            if response.status != 200:
                raise LiveError(f"{address}: answers {response.status}; give the address of a vLLM server")
            return await (response.json(content_type=None) if as_json else response.text())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        what = str(error) or type(error).__name__
        raise LiveError(f"{address}: cannot be read ({what}); is the server up?") from error
