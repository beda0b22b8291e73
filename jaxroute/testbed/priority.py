"""A higher priority for this process, where the system permits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxroute.testbed.engine.start import AUTOGROUP, NICENESS

PASSING = 2
"""Real-time priority of API servers and routers: what they do for a token is short, and must not wait for a model."""


def hurry(pid: int, *, threads: bool = False) -> None:
    """Puts a process's main thread, or all its `threads`, into the real-time class."""
    tasks = [int(each.name) for each in Path(f"/proc/{pid}/task").iterdir()] if threads else [pid]
    for task in tasks:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(task, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PASSING))


@contextmanager
def favoured() -> Iterator[None]:
    """Gives this thread, and this session where sessions are scheduled as groups, the engines' niceness for a while."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    group = Path(AUTOGROUP)
    group_before = group.read_text().split()[-1] if group.exists() else None
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, min(before, NICENESS))
    with suppress(OSError):
        group.write_text(str(NICENESS))
    try:
        yield
    finally:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
        with suppress(OSError):
            if group_before is not None:
                group.write_text(group_before)
