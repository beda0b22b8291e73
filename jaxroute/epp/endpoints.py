"""The backends as Envoy names them, `IP:PORT`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from urllib.parse import urlsplit

from jaxroute.serve.backends import Backend, Backends

LOG = logging.getLogger(__name__)

RESOLVE_S = 5.0
"""Seconds between two look-ups of a host's name."""


class Endpoints:
    """Which endpoint is which backend; hosts that are named are looked up, and again every few seconds."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._by_name: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._unresolved: set[str] = set()

    async def refresh(self) -> None:
        """Looks all backends up; one whose name is unknown just now keeps what it had, or gets no request."""
        backends = list(self._backends)
        found = await asyncio.gather(*(_look_up(backend) for backend in backends))
        by_name = {}
        for backend, endpoint in zip(backends, found, strict=True):
            endpoint = endpoint or self._by_name.get(backend.name)
            if endpoint is not None:
                by_name[backend.name] = endpoint
                self._unresolved.discard(backend.name)
            elif backend.name not in self._unresolved:
                self._unresolved.add(backend.name)
                LOG.warning("host unknown", extra={"backend": backend.name, "url": backend.config.url})
        self._by_name, self._names = by_name, {endpoint: name for name, endpoint in by_name.items()}

    async def refresh_ever_after(self) -> None:
        """Looks them up every few seconds."""
        while True:
            await asyncio.sleep(RESOLVE_S)
            await self.refresh()

    def of(self, name: str) -> str:
        """A backend's endpoint."""
        return self._by_name[name]

    def name_of(self, endpoint: str) -> str | None:
        """The backend of an endpoint, if it is one of them."""
        return self._names.get(endpoint)

    def outside(self, subset: frozenset[str] | None) -> frozenset[str]:
        """Names of the backends that must not be chosen.

        Args:
          subset: endpoints that may be, `IP:PORT`, or `IP` for all ports of it; None for all.
        """
        if subset is None and len(self._by_name) == self._backends.count:
            return frozenset()
        return frozenset(backend.name for backend in self._backends if not self._is_in(backend.name, subset))

    def _is_in(self, name: str, subset: frozenset[str] | None) -> bool:
        endpoint = self._by_name.get(name)
        if endpoint is None or subset is None:
            return endpoint is not None
        return endpoint in subset or endpoint.rsplit(":", 1)[0].strip("[]") in subset


async def _look_up(backend: Backend) -> str | None:
    parts = urlsplit(backend.config.url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        return _text(ipaddress.ip_address(host), port)
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return None
    # IPv4 first, then by the number: all routers choose the same one.
    addresses = sorted((ipaddress.ip_address(each[4][0]) for each in found), key=lambda each: (each.version, int(each)))
    return _text(addresses[0], port) if addresses else None


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
