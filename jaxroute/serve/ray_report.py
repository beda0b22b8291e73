"""What a replica tells Ray Serve routers of its engine, by `record_routing_stats`; writing it and reading it back."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from jaxroute.errors import InputError
from jaxroute.serve.scrape import MOST, parse_metrics
from jaxroute.serve.types import Metrics

KEY = "jaxroute"
"""Of the report within a replica's routing stats, which may hold more."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a replica said.

    Attributes:
      at_s: when, by the clock of its machine, seconds since 1970.
      metrics: of its engine.
      profile: its step-time profile, where it is not that of the deployment.
    """

    at_s: float
    metrics: Metrics
    profile: str | None = None


def load_report(
    running: int, waiting: int, kv_usage: float, *, kv_tokens: int | None = None, profile: str | None = None
) -> dict[str, Any]:
    """What a deployment's `record_routing_stats` returns, alone or among other stats.

    Args:
      running, waiting: requests in the engine.
      kv_usage: share of its KV cache in use, 0 to 1.
      kv_tokens: tokens that the KV cache holds.
      profile: its step-time profile, where it is not that of the deployment: a name, or a file there is where routers
        run.
    """
    # The time makes each report differ from the last one: Ray passes on only what has changed, and the same load as
    # before is news as well.
    values = {"at_s": time.time(), "running": running, "waiting": waiting, "kv_usage": kv_usage}
    return {KEY: {**values, "kv_tokens": kv_tokens, "profile": profile}}


def vllm_report(text: str, *, profile: str | None = None) -> dict[str, Any]:
    """The report of a vLLM server from the text of its `/metrics`.

    Raises:
      InputError: it is none.
    """
    metrics = parse_metrics(text)
    return load_report(metrics.running, metrics.waiting, metrics.kv_usage, kv_tokens=metrics.kv_tokens, profile=profile)


def read_report(stats: Mapping[str, Any]) -> Report | None:
    """The report within a replica's routing stats; None where there is none.

    Raises:
      InputError: it is not what `load_report` writes.
    """
    found = stats.get(KEY)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise InputError(f"routing stats: {KEY} must be what load_report returns")
    profile = found.get("profile")
    if not (profile is None or isinstance(profile, str)):
        raise InputError(f"routing stats: profile is {profile!r}, must be a name or a file")
    kv_tokens = found.get("kv_tokens")
    metrics = Metrics(
        running=_whole(found, "running"),
        waiting=_whole(found, "waiting"),
        kv_usage=_number(found, "kv_usage", 1.0),
        kv_tokens=None if kv_tokens is None else _whole(found, "kv_tokens"),
    )
    return Report(_number(found, "at_s", math.inf), metrics, profile)


def _number(found: Mapping[str, Any], name: str, most: float) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise InputError(f"routing stats: {name} is {value!r}, must be a number of 0 to {most:g}")
    return float(value)


def _whole(found: Mapping[str, Any], name: str) -> int:
    return int(_number(found, name, MOST))
