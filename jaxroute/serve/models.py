"""`/v1/models` of all backends as one list."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.upstream import BackendError, Call, Upstream

MOST_S = 3.0
"""Seconds that a backend has; the list goes without one that takes longer."""


async def merged_models(backends: Backends, upstream: Upstream) -> web.Response:
    """The models that any open backend serves, each once, in the order of the backends."""
    asked = [backend for backend in backends if backend.is_open]
    lists = await asyncio.gather(*(_models(each, upstream) for each in asked))
    if all(found is None for found in lists):
        return error(503, "no server is available", "no-backend", retry_after_s=1)
    models: dict[str, dict[str, Any]] = {}
    for model in (model for found in lists for model in found or []):
        models.setdefault(model["id"], model)
    return web.json_response({"object": "list", "data": list(models.values())})


async def _models(backend: Backend, upstream: Upstream) -> list[dict[str, Any]] | None:
    call = Call("GET", "/v1/models", CIMultiDict({"Accept-Encoding": "identity"}), b"", streamed=False)
    try:
        async with asyncio.timeout(MOST_S):
            answer = await upstream.start(backend, call)
        data = json.loads(answer.body)["data"]
        return [model for model in data if isinstance(model.get("id"), str)]
    except (BackendError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return None
