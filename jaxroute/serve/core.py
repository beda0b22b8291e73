"""What decides, whatever speaks with the clients: brain, backends and their watcher, predictor, metrics, reload."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from jaxroute.errors import InputError
from jaxroute.predictor.service import PredictionService
from jaxroute.serve.answers import error
from jaxroute.serve.backends import Backends, make_backends
from jaxroute.serve.config import Listener, ServeConfig
from jaxroute.serve.decide import Brain, BrainSettings
from jaxroute.serve.decision_log import DecisionLog
from jaxroute.serve.dispatcher import Dispatcher
from jaxroute.serve.lengths import Lengths
from jaxroute.serve.scrape import parse_metrics
from jaxroute.serve.secrets import client_keys
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.visits import Visits
from jaxroute.serve.watch import Watcher

LOG = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RELOADED = ("backends", "profile", "keys_file", "keys_env")
"""Fields that a reload applies; the others need a restart."""


class Core:
    """One router's inside. `start`, then `stop`.

    Attributes:
      config: as it was applied last.
      dispatcher: the brain.
      backends, telemetry, visits: its fleet, its metrics, and the accounts of its requests.
      keys: the clients'; a reload changes them.
    """

    def __init__(self, config: ServeConfig, read: Callable[[], ServeConfig] | None = None) -> None:
        """Loads everything; connects to nothing.

        Args:
          config: what it is told.
          read: reads the configuration anew, for a reload.

        Raises:
          InputError: a policy, profile, predictor or key that cannot be read.
        """
        self.config = config
        self._read = read or (lambda: config)
        self.telemetry = Telemetry()
        self.keys = client_keys(config)
        backends = make_backends(config)
        settings = BrainSettings(
            policy=config.policy,
            shadow=config.shadow,
            max_queue=config.limits.queue,
            max_wait_s=config.limits.wait_s,
            shared=config.shared,
        )
        brain = Brain([each.server() for each in backends], settings, start_s=time.monotonic())
        self._log = None if config.decision_log is None else DecisionLog(config.decision_log)
        self.dispatcher = Dispatcher(brain, log=self._log)
        self._service = None if config.predictor == "none" else PredictionService.load(config.predictor)
        self.backends = Backends(self.dispatcher, self.telemetry)
        self.backends.replace(backends)
        self.telemetry.watch(self.dispatcher, self.backends, self._service)
        lengths = Lengths(self._service, self.telemetry)
        self.visits = Visits(
            self.dispatcher, self.backends, lengths, self.telemetry, trust_predictions=config.trust_predictions
        )

    async def start(self) -> None:
        """Looks at the backends once, then keeps on."""
        self._watcher = Watcher(
            self.backends, self.config.watching, self.telemetry, parse_metrics, self.dispatcher.scraped
        )
        await self._watcher.start()

    async def reload(self) -> list[str]:
        """Reads the configuration anew: backends and keys change, no stream is dropped.

        Returns:
          Keys that have changed and need a restart.

        Raises:
          InputError: it is wrong; all stays as it was.
        """
        new = self._read()
        backends, keys = make_backends(new), client_keys(new)
        self.backends.replace(backends)
        self._watcher.follow()
        self.keys = keys
        fields = [field.name for field in dataclasses.fields(ServeConfig)]
        restart = [name for name in fields if name not in RELOADED and getattr(new, name) != getattr(self.config, name)]
        kept = {name: getattr(self.config, name) for name in restart}
        self.config = dataclasses.replace(new, **kept)
        LOG.info("reloaded", extra={"backends": [each.name for each in self.backends], "needs_restart": restart})
        return restart

    async def stop(self) -> None:
        """Ends it; whoever waits for a place is refused."""
        await self._watcher.stop()
        if self._service is not None:
            await asyncio.to_thread(self._service.close)
        if self._log is not None:
            self._log.close()


class UnderWay:
    """Counts requests under way, so that a drain can wait for their end.

    Attributes:
      count: of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def ended(self, seconds: float) -> bool:
        """Whether all of them have ended within so many seconds."""
        LOG.info("draining", extra={"requests": self.count})
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            LOG.warning("drain timed out", extra={"requests": self.count})
            return False
        return True


async def listen(
    what: str, routes: Sequence[web.RouteDef], listener: Listener, tls: object, config: ServeConfig
) -> web.AppRunner:
    """Listens for HTTP.

    Args:
      what: the listener's name in the configuration.
      routes: what is served; all else is a 404.
      listener: where.
      tls: its SSL context, if any.
      config: limits and timeouts.

    Raises:
      InputError: an address that cannot be listened on.
    """
    # Guarded one by one: with a middleware every request would pass through three more calls.
    app = web.Application(client_max_size=config.limits.body_bytes)
    every = [*routes, web.route("*", "/{rest:.*}", _nothing)]
    app.add_routes([web.RouteDef(each.method, each.path, _guarded(each.handler), each.kwargs) for each in every])
    runner = web.AppRunner(
        app,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=config.timeouts.client_idle_s,
        lingering_time=1.0,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, listener.host, listener.port, ssl_context=tls, backlog=1024).start()  # type: ignore[arg-type]
    except OSError as bad:
        await runner.cleanup()
        place = f"{listener.host}:{listener.port}"
        raise InputError(f"{what} {place}: cannot be listened on ({bad.strerror}); choose another port") from bad
    return runner


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
