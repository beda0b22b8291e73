"""What a vLLM server's `/metrics` text says; fetching it is the proxy's."""

from __future__ import annotations

import math

from prometheus_client.parser import text_string_to_metric_families

from jaxroute.errors import InputError
from jaxroute.serve.types import Metrics

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
KV_USAGE, OLD_KV_USAGE = "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"
CACHE_CONFIG = "vllm:cache_config_info"

MOST = 2**31 - 1
"""Beyond any number of requests or KV tokens that a server can have."""

_WANTED = (RUNNING, WAITING, KV_USAGE, OLD_KV_USAGE, CACHE_CONFIG)

_Sample = tuple[dict[str, str], float]


class ScrapeError(InputError):
    """The text is no metrics of a vLLM server; the message says what is wrong with it."""


def parse_metrics(text: str, place: str = "/metrics") -> Metrics:
    """Reads the metrics of one server.

    Several engines (`engine` labels, of a data-parallel server) are one: requests and KV tokens are summed, KV usage is
    their mean. `cache_config_info` counts `num_gpu_blocks` less the one that vLLM keeps for itself.

    Args:
      text: the body.
      place: what an error calls it.

    Raises:
      ScrapeError: not in Prometheus' format, a gauge is missing, or a value that no server can have.
    """
    samples = _samples(text, place)
    for name in (RUNNING, WAITING):
        if not samples[name]:
            raise ScrapeError(f"{place}: holds no {name}; give the address of a vLLM server")
    # Old servers beside new ones have either name, never both with a meaning of their own.
    usage = samples[KV_USAGE] or samples[OLD_KV_USAGE]
    if not usage:
        raise ScrapeError(f"{place}: holds neither {KV_USAGE} nor {OLD_KV_USAGE}; give the address of a vLLM server")
    shares = [value for _, value in usage]
    if not all(0 <= share <= 1 for share in shares):
        raise ScrapeError(f"{place}: a KV cache usage of {shares} is not within 0 to 1; check the server")
    return Metrics(
        running=_requests(samples[RUNNING], f"{place}: {RUNNING}"),
        waiting=_requests(samples[WAITING], f"{place}: {WAITING}"),
        kv_usage=sum(shares) / len(shares),
        kv_tokens=_kv_tokens(samples[CACHE_CONFIG], f"{place}: {CACHE_CONFIG}"),
    )


def _samples(text: str, place: str) -> dict[str, list[_Sample]]:
    found: dict[str, list[_Sample]] = {name: [] for name in _WANTED}
    # The rest, histograms mostly, would take ten times as long to parse.
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    try:
        for family in text_string_to_metric_families(wanted):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name].append((sample.labels, float(sample.value)))
    # The parser raises whatever happens to go wrong in it.
    except Exception as error:
        raise ScrapeError(f"{place}: not in the format of Prometheus ({error}); check the address") from error
    return found


def _requests(samples: list[_Sample], place: str) -> int:
    total = 0.0
    for _, value in samples:
        if not (math.isfinite(value) and 0 <= value <= MOST):
            raise ScrapeError(f"{place} is {value}, must be a number of requests; check the server")
        total += value
    return min(int(total), MOST)


def _kv_tokens(samples: list[_Sample], place: str) -> int | None:
    """Usable tokens of all engines; None where one does not say."""
    total = 0
    for labels, _ in samples:
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if "None" in (blocks, size) or not (blocks and size):
            return None
        if not (_is_number(blocks) and _is_number(size) and 0 < (int(blocks) - 1) * int(size) <= MOST):
            raise ScrapeError(f"{place} has {blocks!r} blocks of {size!r} tokens, must be numbers; check the server")
        total += (int(blocks) - 1) * int(size)
    return total or None


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= len(str(MOST))
