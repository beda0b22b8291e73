"""The router as a service of its own: the OpenAI endpoints and the administration, in front of the core."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable

from aiohttp import web

from jaxroute.serve.admin import Admin
from jaxroute.serve.answers import error
from jaxroute.serve.config import Listener, ServeConfig
from jaxroute.serve.core import Core, UnderWay, listen
from jaxroute.serve.models import merged_models
from jaxroute.serve.proxy import Proxy
from jaxroute.serve.secrets import listener_tls
from jaxroute.serve.upstream import Upstream
from jaxroute.serve.visits import JSON_ONLY

LOG = logging.getLogger(__name__)


class Router:
    """One router. `start`, then `drain` and `stop`.

    Attributes:
      core: what decides.
      port, admin_port: of the OpenAI endpoints and of the administration.
    """

    def __init__(self, config: ServeConfig, read: Callable[[], ServeConfig] | None = None) -> None:
        """Loads everything; connects to nothing.

        Args:
          config: what it is told.
          read: reads the configuration anew, for a reload.

        Raises:
          InputError: a policy, profile, predictor, key or certificate that cannot be read.
        """
        self._tls = [listener_tls(config.listen), listener_tls(config.admin)]
        self.core = Core(config, read)
        self.dispatcher, self.telemetry = self.core.dispatcher, self.core.telemetry
        self._under_way = UnderWay()
        self._runners: list[web.AppRunner] = []
        self.port, self.admin_port = config.listen.port, config.admin.port

    @property
    def config(self) -> ServeConfig:
        """As it was applied last."""
        return self.core.config

    async def start(self) -> None:
        """Looks at the backends once, then listens.

        Raises:
          InputError: an address that cannot be listened on.
        """
        core, config = self.core, self.config
        self._upstream = Upstream(config.timeouts, config.limits)
        await core.start()
        self._proxy = Proxy(
            core.visits, core.backends, self._upstream, core.telemetry, config.limits, config.timeouts, core.keys
        )
        admin = Admin(core.backends, core.dispatcher, core.telemetry, self.reload)
        states = [web.get("/health", self._health), web.get("/ready", self._ready)]
        public = [web.get("/v1/models", self._models), web.route("*", "/v1/{rest:.*}", self._counted)]
        # By their whole names, which costs less than by a pattern.
        public[:0] = [web.post(path, self._counted) for path in sorted(JSON_ONLY)]
        for what, routes, listener, tls in (
            ("listen", [*states, *public], config.listen, self._tls[0]),
            ("admin", [*states, *admin.routes()], config.admin, self._tls[1]),
        ):
            self._runners.append(await listen(what, routes, listener, tls, config))
        self.port, self.admin_port = (runner.addresses[0][1] for runner in self._runners)
        if not (core.keys or is_loopback(config.listen.host)):
            LOG.warning(
                "whoever reaches this address may use the servers: no keys are set", extra=place_of(config.listen)
            )
        if not is_loopback(config.admin.host):
            LOG.warning("whoever reaches this address may administer the router", extra=place_of(config.admin))
        LOG.info("listening", extra={"host": config.listen.host, "port": self.port, "admin_port": self.admin_port})

    async def reload(self) -> list[str]:
        """See `Core.reload`."""
        restart = await self.core.reload()
        self._proxy.keys = self.core.keys
        return restart

    async def drain(self) -> bool:
        """Takes no further request and lets those under way finish; whether all did in time."""
        self._proxy.draining = True
        for site in list(self._runners[0].sites):
            await site.stop()
        return await self._under_way.ended(self.config.timeouts.drain_s)

    async def stop(self) -> None:
        """Ends it; whatever is still under way is cut off."""
        self.dispatcher.close()
        for runner in self._runners:
            await runner.cleanup()
        await self.core.stop()
        await self._upstream.close()
        LOG.info("stopped")

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        with self._under_way:
            return await self._proxy.handle(request)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return self._proxy.refusal(request) or await merged_models(self.core.backends, self._upstream)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        if self._proxy.draining:
            return error(503, "the router is shutting down", "closing")
        if not self.core.backends.any_open:
            return error(503, "no server is available", "no-backend")
        return web.Response()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def place_of(listener: Listener) -> dict[str, object]:
    """A listener as the log has it."""
    return {"host": listener.host, "port": listener.port}
