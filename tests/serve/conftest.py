"""Runs tests that are coroutines, each in an event loop of its own, within a time limit."""

from __future__ import annotations

import asyncio
import inspect
import logging

import pytest
import uvloop

MOST_S, MOST_SLOW_S = 60.0, 300.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    most_s = MOST_SLOW_S if pyfuncitem.get_closest_marker("slow") else MOST_S
    uvloop.run(asyncio.wait_for(pyfuncitem.obj(**arguments), most_s))
    return True


@pytest.fixture(autouse=True)
def _logs_are_left_as_they_were() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
