"""A higher priority for this process, where the system permits it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxroute.testbed.engine.start import AUTOGROUP, NICENESS

PASSING = 2
"""Real-time priority of API servers and routers: what they do for a token is short, and must not wait for a model."""


def hurry_server(pid: int) -> None:
    """Puts an API server into the real-time class, and the threads by which its engine hears and speaks."""
    _hurry([pid])
    for engine in _children(pid):
        # The engine's own thread has set its priority itself.
        _hurry(task for task in _tasks(engine) if task != engine)


def hurry_router(pid: int) -> None:
    """Puts all threads of a process into the real-time class."""
    _hurry(_tasks(pid))


def _hurry(tasks: Iterable[int]) -> None:
    for task in tasks:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(task, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PASSING))


def _tasks(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()]
    return []


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextmanager
def favoured() -> Iterator[None]:
    """Gives this thread, and this session where sessions are scheduled as groups, the engines' niceness for a while."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    group_before = group_niceness()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, NICENESS))
    with suppress(OSError):
        Path(AUTOGROUP).write_text(str(NICENESS))
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
        with suppress(OSError):
            if group_before is not None:
                Path(AUTOGROUP).write_text(group_before)


def group_niceness(file: Path = Path(AUTOGROUP)) -> str | None:
    """The niceness of this session's scheduling group (`/autogroup-632 nice 0`); none where it is in no such group."""
    with suppress(OSError):
        # The file is there and empty where a process is in the root group, as in some containers.
        if words := file.read_text().split():
            return words[-1]
    return None
