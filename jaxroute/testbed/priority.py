"""A higher priority for this process, where the system permits it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxroute.testbed.engine.start import AUTOGROUP, NICENESS

PASSING = 1
"""Real-time priority of the API servers: what they do for a token is short, and must not wait for another's model."""


def hurry(pids: Iterable[int]) -> None:
    """Puts the main threads of processes into the real-time class."""
    for pid in pids:
        with suppress(OSError, AttributeError):
            os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PASSING))


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
