"""Runs a router until it is told to stop: SIGHUP reads the configuration anew, SIGTERM lets requests finish."""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Callable
from typing import Protocol

import uvloop

from jaxroute.errors import InputError
from jaxroute.serve.app import Router
from jaxroute.serve.config import ServeConfig
from jaxroute.serve.log import set_up_logs

LOG = logging.getLogger(__name__)


class Service(Protocol):
    """What runs: a proxy, or a picker."""

    async def start(self) -> None:
        """Listens."""

    async def reload(self) -> list[str]:
        """Reads the configuration anew."""

    async def drain(self) -> bool:
        """Lets the requests under way finish."""

    async def stop(self) -> None:
        """Ends it."""


def run(
    read: Callable[[], ServeConfig], make: Callable[[ServeConfig, Callable[[], ServeConfig]], Service] = Router
) -> None:
    """Runs it; returns when all requests have ended after the first SIGTERM or SIGINT, or at once at the second.

    Args:
      read: reads the configuration, now and at every reload.
      make: makes what runs.

    Raises:
      InputError: the configuration, or what it names, is wrong.
    """
    config = read()
    # A stream takes two sockets, and the usual limit is 1,024 files.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_serve(config, read, make))


async def _serve(
    config: ServeConfig,
    read: Callable[[], ServeConfig],
    make: Callable[[ServeConfig, Callable[[], ServeConfig]], Service],
) -> None:
    router = make(config, read)
    with set_up_logs(config.log_level):
        await _until_told(router)


async def _until_told(router: Service) -> None:
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    try:
        await router.start()
        # What is here to stay needs no look at every collection of garbage.
        gc.collect()
        gc.freeze()
        reloading = asyncio.create_task(_reload_whenever(router, reload))
        await stop.wait()
        reloading.cancel()
        stop.clear()
        await _first(router.drain(), stop.wait())
    finally:
        await router.stop()


async def _reload_whenever(router: Service, asked: asyncio.Event) -> None:
    while True:
        await asked.wait()
        asked.clear()
        try:
            await router.reload()
        except InputError as bad:
            LOG.error("not reloaded", extra={"reason": str(bad)})
        except Exception:
            # The next signal is to be heard as well.
            LOG.exception("not reloaded")


async def _first(*waits: object) -> None:
    """Waits until one of them is done, and ends the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    _, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
