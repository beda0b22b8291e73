"""The administration's own listener: metrics, the state of the backends, a new reading of the configuration."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from jaxroute.errors import InputError
from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backends
from jaxroute.serve.telemetry import Fleet, Telemetry


class Admin:
    """Its handlers."""

    def __init__(
        self, backends: Backends, fleet: Fleet, telemetry: Telemetry, reload: Callable[[], Awaitable[list[str]]]
    ) -> None:
        """Remembers what to show.

        Args:
          backends, fleet, telemetry: what is shown.
          reload: reads the configuration anew; returns what of it needs a restart; raises InputError.
        """
        self._backends, self._fleet, self._telemetry, self._reload = backends, fleet, telemetry, reload

    def routes(self) -> list[web.RouteDef]:
        """All of them."""
        return [
            web.get("/metrics", self._metrics),
            web.get("/admin/backends", self._show),
            web.post("/admin/reload", self._reload_now),
        ]

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _show(self, request: web.Request) -> web.Response:
        status = {each.name: each for each in self._fleet.status()}
        rows = []
        for backend in self._backends:
            row: dict[str, object] = {"name": backend.name, "url": backend.config.url, "profile": backend.profile.name}
            row |= {"up": backend.health.up, "breaker": backend.breaker.state, "open": backend.is_open}
            if (known := status.get(backend.name)) is not None:
                age = known.signal_age_s
                row |= {
                    "in_flight_requests": known.in_flight,
                    "in_flight_tokens": known.in_flight_tokens,
                    "outstanding_tokens": known.outstanding_tokens,
                    "signal_age_s": round(age, 3) if age < float("inf") else None,
                }
            rows.append(row)
        return web.json_response({"backends": rows, "queue_length": self._fleet.queue_length})

    async def _reload_now(self, request: web.Request) -> web.Response:
        if "Origin" in request.headers:
            # A web page that somebody here has open, whose requests reach the loopback address too.
            return error(403, "not from a web page", "forbidden")
        try:
            restart = await self._reload()
        except InputError as bad:
            return error(400, str(bad), "invalid_configuration")
        return web.json_response({"backends": [each.name for each in self._backends], "needs_restart": restart})
