"""Looks after the backends: their `/health`, and the readings of their `/metrics`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from jaxroute.serve.backends import Backend, Backends
from jaxroute.serve.config import Watching
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Metrics

LOG = logging.getLogger(__name__)

MOST_METRICS_BYTES = 8 * 2**20


class Watcher:
    """Two loops for each backend, with connections of their own."""

    def __init__(
        self,
        backends: Backends,
        watching: Watching,
        telemetry: Telemetry,
        parse: Callable[[str], Metrics],
        scraped: Callable[[str, Metrics], None],
    ) -> None:
        """Remembers whom to tell.

        Args:
          backends: to look after.
          watching: how often.
          telemetry: counts what fails.
          parse: reads the text of `/metrics`; raises ValueError where it is none.
          scraped: takes the result.
        """
        self._backends, self._watching, self._telemetry = backends, watching, telemetry
        self._parse, self._scraped = parse, scraped
        self._tasks: dict[Backend, list[asyncio.Task[None]]] = {}
        self._unreadable: set[str] = set()

    async def start(self) -> None:
        """Checks every backend once, then keeps on."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._watching.health_timeout_s),
        )
        await asyncio.gather(*(self._check(each) for each in self._backends))
        self.follow()

    def follow(self) -> None:
        """Looks after the backends that there are by now, and after no others."""
        current = set(self._backends)
        for gone in [each for each in self._tasks if each not in current]:
            for task in self._tasks.pop(gone):
                task.cancel()
        for new in current - set(self._tasks):
            loops = (self._health_loop(new), self._scrape_loop(new))
            self._tasks[new] = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ends it."""
        tasks = [task for both in self._tasks.values() for task in both]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    async def _health_loop(self, backend: Backend) -> None:
        while True:
            await self._check(backend)
            backend.check_now.clear()
            try:
                async with asyncio.timeout(self._watching.health_s):
                    await backend.check_now.wait()
                # Whoever fails often has it checked no more often than this.
                await asyncio.sleep(min(0.05, self._watching.health_s))
            except TimeoutError:
                pass

    async def _check(self, backend: Backend) -> None:
        try:
            async with self._session.get(
                f"{backend.config.url}/health", headers=backend.headers, ssl=backend.tls, allow_redirects=False
            ) as response:
                status = response.status
        except aiohttp.ClientConnectorError as error:
            self._backends.health_failed(backend, type(error).__name__, refused=True)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._backends.health_failed(backend, type(error).__name__)
        else:
            if status == 200:
                self._backends.health_passed(backend)
            else:
                self._backends.health_failed(backend, f"http-{status}")

    async def _scrape_loop(self, backend: Backend) -> None:
        loop = asyncio.get_running_loop()
        while True:
            start = loop.time()
            if backend.health.up:
                await self._scrape(backend)
            await asyncio.sleep(max(0.01, start + self._watching.scrape_s - loop.time()))

    async def _scrape(self, backend: Backend) -> None:
        """One reading; a failed one leaves the last one to grow old, which the brain notices by itself."""
        try:
            async with self._session.get(
                f"{backend.config.url}/metrics", headers=backend.headers, ssl=backend.tls, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise ValueError(f"HTTP {response.status}")
                data = bytearray()
                async for piece in response.content.iter_any():
                    data += piece
                    if len(data) > MOST_METRICS_BYTES:
                        raise ValueError("too long")
            metrics = self._parse(data.decode())
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._telemetry.failures.labels(backend.name, "metrics").inc()
            if backend.name not in self._unreadable:
                self._unreadable.add(backend.name)
                LOG.warning(
                    "metrics unreadable",
                    extra={"backend": backend.name, "reason": f"{type(error).__name__}: {error}"[:200]},
                )
        else:
            self._unreadable.discard(backend.name)
            self._scraped(backend.name, metrics)
