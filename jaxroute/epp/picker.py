"""The endpoint picker as a service: the gRPC listener, its health, the administration, reload and drain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import grpc
from aiohttp import web
from envoy.service.ext_proc.v3.external_processor_pb2 import DESCRIPTOR
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import (
    ExternalProcessorServicer,
    add_ExternalProcessorServicer_to_server,
)
from grpc_health.v1 import health as grpc_health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from jaxroute.epp.desk import Desk
from jaxroute.epp.exchange import Exchange
from jaxroute.errors import InputError
from jaxroute.serve.admin import Admin
from jaxroute.serve.answers import error
from jaxroute.serve.app import is_loopback, place_of
from jaxroute.serve.config import Listener, ServeConfig
from jaxroute.serve.core import Core, UnderWay, listen
from jaxroute.serve.secrets import listener_tls

LOG = logging.getLogger(__name__)

SERVICE = DESCRIPTOR.services_by_name["ExternalProcessor"].full_name

LIVENESS, READINESS = "liveness", "readiness"

HEALTH_S = 0.2
"""Seconds between two looks at whether there is a backend."""

FRAME_BYTES = 2**20
"""Of a message beside the body in it."""


class Picker(ExternalProcessorServicer):
    """One picker. `start`, then `drain` and `stop`.

    Attributes:
      core: what decides.
      desk: what all requests share.
      port, admin_port: of gRPC and of the administration.
    """

    def __init__(self, config: ServeConfig, read: Callable[[], ServeConfig] | None = None) -> None:
        """Loads everything; connects to nothing.

        Args:
          config: what it is told; `listen` is the gRPC listener.
          read: reads the configuration anew, for a reload.

        Raises:
          InputError: a policy, profile, predictor, key or certificate that cannot be read.
        """
        # The administration's TLS; gRPC reads the listener's files itself, which are checked here.
        self._admin_tls, _ = listener_tls(config.admin), listener_tls(config.listen)
        self.core = Core(config, read)
        self.desk = Desk(self.core)
        self._under_way = UnderWay()
        self._draining = False
        self.port, self.admin_port = config.listen.port, config.admin.port

    async def start(self) -> None:
        """Looks at the backends once, then listens.

        Raises:
          InputError: an address that cannot be listened on.
        """
        core, config = self.core, self.core.config
        await core.start()
        await self.desk.endpoints.refresh()
        self._health = grpc_health.aio.HealthServicer()
        await self._tell_health()
        # A body comes in one message.
        most = config.limits.body_bytes + FRAME_BYTES
        options = [("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        add_ExternalProcessorServicer_to_server(self, self._server)
        add_HealthServicer_to_server(self._health, self._server)
        self.port = _bind(self._server, config.listen)
        admin = Admin(core.backends, core.dispatcher, core.telemetry, self.reload)
        states = [web.get("/health", _alive), web.get("/ready", self._ready)]
        self._runner = await listen("admin", [*states, *admin.routes()], config.admin, self._admin_tls, config)
        self.admin_port = self._runner.addresses[0][1]
        await self._server.start()
        self._tasks = [asyncio.create_task(self.desk.endpoints.refresh_ever_after())]
        self._tasks.append(asyncio.create_task(self._keep_telling_health()))
        for what, listener in (("use", config.listen), ("administer", config.admin)):
            if not is_loopback(listener.host):
                LOG.warning(f"whoever reaches this address may {what} the picker", extra=place_of(listener))
        LOG.info("listening", extra={"host": config.listen.host, "port": self.port, "admin_port": self.admin_port})

    async def reload(self) -> list[str]:
        """See `Core.reload`."""
        restart = await self.core.reload()
        await self.desk.endpoints.refresh()
        return restart

    async def drain(self) -> bool:
        """Takes no further request and lets those under way finish; whether all did in time."""
        self._draining = True
        await self._tell_health()
        drain_s = self.core.config.timeouts.drain_s
        # gRPC tells its clients to go elsewhere, and cuts off what is left at the end.
        stopping = asyncio.create_task(self._server.stop(drain_s))
        done = await self._under_way.ended(drain_s)
        await stopping
        return done

    async def stop(self) -> None:
        """Ends it; whatever is still under way is cut off."""
        self.core.dispatcher.close()
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if hasattr(self, "_server"):
            await self._server.stop(None)
        if hasattr(self, "_runner"):
            await self._runner.cleanup()
        await self.core.stop()
        LOG.info("stopped")

    async def Process(self, requests: Any, context: Any) -> None:  # noqa: N802 - gRPC's name
        """One HTTP request."""
        with self._under_way:
            try:
                await Exchange(self.desk, context.read, context.write).run()
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:
                LOG.exception("request failed")
                await context.abort(grpc.StatusCode.INTERNAL, "the picker failed")

    async def _keep_telling_health(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_S)
            await self._tell_health()

    async def _tell_health(self) -> None:
        ready = self.core.backends.any_open and not self._draining
        status = HealthCheckResponse.SERVING if ready else HealthCheckResponse.NOT_SERVING
        await self._health.set(LIVENESS, HealthCheckResponse.SERVING)
        for name in ("", READINESS, SERVICE):
            await self._health.set(name, status)

    async def _ready(self, request: web.Request) -> web.Response:
        if self._draining:
            return error(503, "the picker is shutting down", "closing")
        if not self.core.backends.any_open:
            return error(503, "no server is available", "no-backend")
        return web.Response()


def _bind(server: Any, listener: Listener) -> int:
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    place = f"{host}:{listener.port}"
    with contextlib.suppress(RuntimeError):
        if listener.cert_file is None or listener.key_file is None:
            port = server.add_insecure_port(place)
        else:
            pair = listener.key_file.read_bytes(), listener.cert_file.read_bytes()
            port = server.add_secure_port(place, grpc.ssl_server_credentials([pair]))
        if port:
            return int(port)
    raise InputError(f"listen {place}: cannot be listened on; choose another port")


async def _alive(request: web.Request) -> web.Response:
    return web.Response()
