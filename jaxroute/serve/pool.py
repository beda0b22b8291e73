"""Open connections to the backends that wait for a request."""

from __future__ import annotations

import asyncio
import ssl
import time

from yarl import URL

from jaxroute.serve.connection import Connection

KEEP_ALIVE_S = 4.0
"""That an idle connection is kept: vLLM closes its own after 5 s."""

AT_ONCE = 32
"""Connections to one server that are being made at a time: of a thousand at once, all would be late."""

Place = tuple[str, ssl.SSLContext | bool]
"""Root of a server, and how its certificate is checked."""


class Pool:
    """Idle connections by server, the youngest first."""

    def __init__(self, connect_s: float) -> None:
        self._connect_s = connect_s
        self._idle: dict[Place, list[Connection]] = {}
        self._turns: dict[Place, asyncio.Semaphore] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self, place: Place, *, fresh: bool = False) -> Connection:
        """A connection that can take a request: an idle one, or where there is none (or `fresh`), a new one.

        Raises:
          OSError: none can be made.
          TimeoutError: not in time.
        """
        if not fresh and (connection := self._youngest(place)) is not None:
            return connection
        async with self._turns.setdefault(place, asyncio.Semaphore(AT_ONCE)):
            # One may have become idle while this one waited for its turn.
            return (None if fresh else self._youngest(place)) or await self._connect(place)

    def _youngest(self, place: Place) -> Connection | None:
        idle = self._idle.get(place)
        while idle:
            connection = idle.pop()
            if connection.is_idle and time.monotonic() - connection.idle_since < KEEP_ALIVE_S:
                return connection
            connection.close()
        return None

    async def _connect(self, place: Place) -> Connection:
        root, tls = place
        url = URL(root)
        assert url.host is not None and url.port is not None
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_s):
            _, connection = await loop.create_connection(
                Connection, url.host, url.port, ssl=tls if url.scheme == "https" else None
            )
        return connection

    def give(self, place: Place, connection: Connection) -> None:
        """A connection whose answer is done with; it is kept if it can take another request."""
        if not connection.release():
            return
        if self._closed:
            connection.close()
            return
        self._idle.setdefault(place, []).append(connection)
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._sweep)

    def close(self) -> None:
        """Closes those that are idle."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _sweep(self) -> None:
        oldest = time.monotonic() - KEEP_ALIVE_S
        for place, connections in list(self._idle.items()):
            kept = [each for each in connections if each.is_idle and each.idle_since > oldest]
            for each in connections:
                if each not in kept:
                    each.close()
            if kept:
                self._idle[place] = kept
            else:
                del self._idle[place]
        self._sweeping = asyncio.get_running_loop().call_later(KEEP_ALIVE_S, self._sweep) if self._idle else None
