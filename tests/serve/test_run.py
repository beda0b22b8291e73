"""What happens on a signal."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from jaxroute.serve.app import Router
from jaxroute.serve.run import _reload_whenever


@pytest.mark.parametrize("error", [ValueError("a key with PRIVATE"), OSError("gone")])
async def test_a_reload_that_fails_in_whatever_way_does_not_deafen_the_router(error: Exception) -> None:
    class Failing:
        asked = 0

        async def reload(self) -> list[str]:
            self.asked += 1
            raise error

    router, signal = Failing(), asyncio.Event()
    task = asyncio.create_task(_reload_whenever(cast(Router, cast(Any, router)), signal))
    for number in (1, 2):
        signal.set()
        async with asyncio.timeout(5):
            while router.asked < number:
                await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
