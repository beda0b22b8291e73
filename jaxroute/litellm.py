"""Routing within LiteLLM: its `Router` asks the core of `jaxroute serve` which deployment takes a request."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from typing import Any

import litellm
from litellm.integrations.custom_logger import CustomLogger
from litellm.types.router import CustomRoutingStrategyBase

from jaxroute.errors import InputError
from jaxroute.serve.backends import Backend
from jaxroute.serve.config import BackendConfig, ServeConfig
from jaxroute.serve.core import Core
from jaxroute.serve.openai_body import read_fields
from jaxroute.serve.types import Refused
from jaxroute.serve.visits import Visit

KEY = "jaxroute_visit"
"""In a request's metadata, by which its end is known as its own."""


class JaxrouteStrategy(CustomRoutingStrategyBase, CustomLogger):
    """Chooses deployments, holds requests, and hears from LiteLLM how they end.

    Deployments are vLLM servers with an `api_base`, named by their `model_info.id`. LiteLLM shows no token as it comes,
    so the progress of requests is estimated. One whose client leaves in mid-stream counts as there until
    `timeouts.answer_s` is over: LiteLLM says nothing of it.

    Example:
      ```
      router = litellm.Router(model_list=[...])
      strategy = JaxrouteStrategy(router, profile="a100-80gb-llama31-8b")
      await router.acompletion(model="llama", messages=[...])
      ```
    """

    def __init__(self, router: litellm.Router, **options: Any) -> None:
        """Takes over the router's choices; whatever is served is looked at from the first request on.

        Args:
          router: with all its deployments.
          options: fields of `ServeConfig` but the backends and the listeners.

        Raises:
          InputError: a deployment without an address, or an option that is wrong.
        """
        super().__init__()
        # LiteLLM takes loggers of one class for the same one, unless a public attribute differs.
        self.jaxroute_id = uuid.uuid4().hex
        self._deployments: dict[str, dict[str, Any]] = {}
        configs: list[BackendConfig] = []
        for each in _deployments(router):
            name, base = each["model_info"]["id"], each["litellm_params"].get("api_base")
            if not base:
                raise InputError(f"deployment {name}: has no api_base; give http://HOST:PORT/v1")
            configs.append(BackendConfig(base.rstrip("/").removesuffix("/v1"), name=name))
            self._deployments[name] = each
        self._core = Core(ServeConfig(backends=tuple(configs), **options))
        for backend in self._core.backends:
            backend.key = self._deployments[backend.name]["litellm_params"].get("api_key")
        self._starting: asyncio.Task[None] | None = None
        self._placed: dict[str, tuple[Visit, Backend, asyncio.TimerHandle]] = {}
        litellm.callbacks.append(self)
        # By its older name, where there is no newer one.
        (getattr(router, "register_plugin", None) or router.set_custom_routing_strategy)(self)

    async def async_get_available_deployment(
        self,
        model: str,
        messages: list[dict[str, str]] | None = None,
        input: str | list[object] | None = None,
        specific_deployment: bool | None = False,
        request_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The deployment of a request; waits while it is held.

        Raises:
          RateLimitError: too many wait, or it waited too long.
          ServiceUnavailableError: no server of its model is available.
        """
        await self._start()
        kwargs = request_kwargs if request_kwargs is not None else {}
        metadata = kwargs.setdefault("metadata", None) or kwargs.setdefault("litellm_metadata", {})
        self._forget(metadata.get(KEY), "retried")
        given = {"messages": messages, "input": input}
        asked = read_fields(kwargs | {name: value for name, value in given.items() if value is not None})
        visits, exclude = self._core.visits, frozenset(self._others(model))
        visit = await visits.begin(
            uuid.uuid4().hex, asked, time.monotonic(), task=metadata.get("task"), stated=None, streamed=False
        )
        try:
            placement = await visits.place(visit, exclude)
        except Refused as no:
            status, text = visits.refused(visit, no.reason)
            error = litellm.RateLimitError if status == 429 else litellm.ServiceUnavailableError
            raise error(message=text, llm_provider="jaxroute", model=model) from no
        backend = self._core.backends[placement.backend]
        visits.sent(visit, backend)
        expiry = asyncio.get_running_loop().call_later(
            self._core.config.timeouts.answer_s, self._forget, visit.incoming.id, "expired"
        )
        self._placed[visit.incoming.id] = visit, backend, expiry
        metadata[KEY] = visit.incoming.id
        return self._deployments[backend.name]

    def get_available_deployment(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """There is none: a request may have to wait."""
        raise InputError("jaxroute decides within an event loop; call acompletion and the like")

    async def async_log_success_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """A request is complete."""
        if (found := self._take(kwargs)) is not None:
            usage = getattr(response_obj, "usage", None)
            tokens = getattr(usage, "completion_tokens", None) or 0
            prompt_tokens = getattr(usage, "prompt_tokens", None)
            self._core.visits.finished(*found, 200, tokens, prompt_tokens=prompt_tokens)

    async def async_log_failure_event(
        self, kwargs: dict[str, Any], response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """A request has failed; what the server refused for good reason is no fault of it."""
        if (found := self._take(kwargs)) is None:
            return
        visit, backend = found
        status = int(getattr(kwargs.get("exception"), "status_code", None) or 500)
        reason = f"http-{status}"
        if status < 500 and status != 429:
            self._core.visits.finished(visit, backend, status, 0)
        else:
            self._core.visits.missed(visit, backend, reason, at_fault=status != 429)
            self._core.visits.done(visit, backend.name, status, 0, outcome=reason)

    async def close(self) -> None:
        """Looks after the servers no more, and hears of no request any more."""
        litellm.logging_callback_manager.remove_callback_from_all_lists(self)
        for id in list(self._placed):
            self._forget(id, "closed")
        self._core.dispatcher.close()
        if self._starting is not None:
            await self._starting
            await self._core.stop()

    async def _start(self) -> None:
        if self._starting is None:
            self._starting = asyncio.create_task(self._core.start())
        await self._starting

    def _others(self, model: str) -> list[str]:
        """Deployments of other models; those of an unknown one, such as an alias, are left to LiteLLM's names."""
        return [name for name, each in self._deployments.items() if each["model_name"] != model]

    def _take(self, kwargs: dict[str, Any]) -> tuple[Visit, Backend] | None:
        """The request of a callback, which is no longer here; None where it was not placed here, or is over."""
        params = kwargs.get("litellm_params") or {}
        metadata = params.get("metadata") or params.get("litellm_metadata") or {}
        found = self._placed.get(metadata.get(KEY, ""))
        # A late word of an earlier try, whose place has been given up.
        if found is None or (metadata.get("model_info") or {}).get("id", found[1].name) != found[1].name:
            return None
        visit, backend, expiry = self._placed.pop(found[0].incoming.id)
        expiry.cancel()
        return visit, backend

    def _forget(self, id: str | None, outcome: str) -> None:
        """A request whose end nobody has told."""
        if id is None or (found := self._placed.pop(id, None)) is None:
            return
        visit, backend, expiry = found
        expiry.cancel()
        self._core.dispatcher.failed(id, outcome)
        self._core.backends.undecided(backend)
        self._core.visits.done(visit, backend.name, 499, 0, outcome=outcome)


def _deployments(router: litellm.Router) -> Sequence[dict[str, Any]]:
    # `model_list` is deprecated where there is a registry.
    return list(router.registry().all() if hasattr(router, "registry") else router.model_list)
