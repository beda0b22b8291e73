"""The router as a service: two listeners, the backends' watcher, reload and drain."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from jaxroute.errors import InputError
from jaxroute.predictor.service import PredictionService
from jaxroute.serve.admin import Admin
from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backends, make_backends
from jaxroute.serve.config import Listener, ServeConfig
from jaxroute.serve.decide import Brain, BrainSettings
from jaxroute.serve.decision_log import DecisionLog
from jaxroute.serve.dispatcher import Dispatcher
from jaxroute.serve.lengths import Lengths
from jaxroute.serve.models import merged_models
from jaxroute.serve.proxy import JSON_ONLY, Proxy
from jaxroute.serve.scrape import parse_metrics
from jaxroute.serve.secrets import client_keys, listener_tls
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.upstream import Upstream
from jaxroute.serve.watch import Watcher

LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RELOADED = ("backends", "profile", "keys_file", "keys_env")
"""Fields that a reload applies; the others need a restart."""


class Router:
    """One router. `start`, then `drain` and `stop`.

    Attributes:
      config: as it was applied last.
      dispatcher: the brain.
      telemetry: its metrics.
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
        self.config = config
        self._read = read or (lambda: config)
        self.telemetry = Telemetry()
        self._tls = [listener_tls(config.listen), listener_tls(config.admin)]
        keys = client_keys(config)
        backends = make_backends(config)
        settings = BrainSettings(
            policy=config.policy,
            shadow=config.shadow,
            max_queue=config.limits.queue,
            max_wait_s=config.limits.wait_s,
        )
        brain = Brain([each.server() for each in backends], settings, start_s=time.monotonic())
        self._log = None if config.decision_log is None else DecisionLog(config.decision_log)
        self.dispatcher = Dispatcher(brain, log=self._log)
        self._service = None if config.predictor == "none" else PredictionService.load(config.predictor)
        self._backends = Backends(self.dispatcher, self.telemetry)
        self._backends.replace(backends)
        self.telemetry.watch(self.dispatcher, self._backends, self._service)
        self._lengths = Lengths(self._service, self.telemetry)
        self._keys = keys
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._runners: list[web.AppRunner] = []
        self.port, self.admin_port = config.listen.port, config.admin.port

    async def start(self) -> None:
        """Looks at the backends once, then listens.

        Raises:
          InputError: an address that cannot be listened on.
        """
        config = self.config
        self._upstream = Upstream(config.timeouts, config.limits)
        self._watcher = Watcher(self._backends, config.watching, self.telemetry, parse_metrics, self.dispatcher.scraped)
        await self._watcher.start()
        self._proxy = Proxy(
            self.dispatcher,
            self._backends,
            self._upstream,
            self._lengths,
            self.telemetry,
            config.limits,
            config.timeouts,
            self._keys,
            trust_predictions=config.trust_predictions,
        )
        admin = Admin(self._backends, self.dispatcher, self.telemetry, self.reload)
        states = [web.get("/health", self._health), web.get("/ready", self._ready)]
        public = [web.get("/v1/models", self._models), web.route("*", "/v1/{rest:.*}", self._counted)]
        # By their whole names, which costs less than by a pattern.
        public[:0] = [web.post(path, self._counted) for path in sorted(JSON_ONLY)]
        for what, app, listener, tls in (
            ("listen", self._app([*states, *public]), config.listen, self._tls[0]),
            ("admin", self._app([*states, *admin.routes()]), config.admin, self._tls[1]),
        ):
            await self._listen(what, app, listener, tls)
        self.port, self.admin_port = (runner.addresses[0][1] for runner in self._runners)
        if not (self._keys or _is_loopback(config.listen.host)):
            LOG.warning(
                "whoever reaches this address may use the servers: no keys are set", extra=_place(config.listen)
            )
        if not _is_loopback(config.admin.host):
            LOG.warning("whoever reaches this address may administer the router", extra=_place(config.admin))
        LOG.info("listening", extra={"host": config.listen.host, "port": self.port, "admin_port": self.admin_port})

    async def reload(self) -> list[str]:
        """Reads the configuration anew: backends and keys change, no stream is dropped.

        Returns:
          Keys that have changed and need a restart.

        Raises:
          InputError: it is wrong; all stays as it was.
        """
        new = self._read()
        backends, keys = make_backends(new), client_keys(new)
        self._backends.replace(backends)
        self._watcher.follow()
        self._proxy.keys = keys
        fields = [field.name for field in dataclasses.fields(ServeConfig)]
        restart = [name for name in fields if name not in RELOADED and getattr(new, name) != getattr(self.config, name)]
        kept = {name: getattr(self.config, name) for name in restart}
        self.config = dataclasses.replace(new, **kept)
        LOG.info("reloaded", extra={"backends": [each.name for each in self._backends], "needs_restart": restart})
        return restart

    async def drain(self) -> bool:
        """Takes no further request and lets those under way finish; whether all did in time."""
        self._proxy.draining = True
        LOG.info("draining", extra={"requests": self._active})
        for site in list(self._runners[0].sites):
            await site.stop()
        try:
            async with asyncio.timeout(self.config.timeouts.drain_s):
                await self._idle.wait()
        except TimeoutError:
            LOG.warning("drain timed out", extra={"requests": self._active})
            return False
        return True

    async def stop(self) -> None:
        """Ends it; whatever is still under way is cut off."""
        self.dispatcher.close()
        for runner in self._runners:
            await runner.cleanup()
        await self._watcher.stop()
        await self._upstream.close()
        if self._service is not None:
            await asyncio.to_thread(self._service.close)
        if self._log is not None:
            self._log.close()
        LOG.info("stopped")

    def _app(self, routes: Sequence[web.RouteDef]) -> web.Application:
        # Guarded one by one: with a middleware every request would pass through three more calls.
        app = web.Application(client_max_size=self.config.limits.body_bytes)
        every = [*routes, web.route("*", "/{rest:.*}", _nothing)]
        app.add_routes([web.RouteDef(each.method, each.path, _guarded(each.handler), each.kwargs) for each in every])
        return app

    async def _listen(self, what: str, app: web.Application, listener: Listener, tls: object) -> None:
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=self.config.timeouts.client_idle_s,
            lingering_time=1.0,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, listener.host, listener.port, ssl_context=tls, backlog=1024).start()  # type: ignore[arg-type]
        except OSError as bad:
            place = f"{listener.host}:{listener.port}"
            raise InputError(f"{what} {place}: cannot be listened on ({bad.strerror}); choose another port") from bad

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        self._active += 1
        self._idle.clear()
        try:
            return await self._proxy.handle(request)
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return self._proxy.refusal(request) or await merged_models(self._backends, self._upstream)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _ready(self, request: web.Request) -> web.Response:
        if self._proxy.draining:
            return error(503, "the router is shutting down", "closing")
        if not self._backends.any_open:
            return error(503, "no server is available", "no-backend")
        return web.Response()


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _place(listener: Listener) -> dict[str, object]:
    return {"host": listener.host, "port": listener.port}


def _guarded(handler: Handler) -> Handler:
    """Whatever goes wrong is an error in OpenAI's words, without a word of what the client sent."""

    @functools.wraps(handler)
    async def guarded(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as bad:
            if bad.status < 400:
                raise
            return error(bad.status, bad.reason, "invalid_request")
        except Exception:
            LOG.exception("request failed")
            return error(500, "the router failed", "router_error")

    return guarded


async def _nothing(request: web.Request) -> web.Response:
    """For whatever has no place here."""
    return error(404, "there is no such endpoint", "not_found")
