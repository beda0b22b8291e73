"""Becomes vLLM's API server, in such a way that it dies with the process that asked for it.

python start.py PARENT_PID PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
NICENESS = -10
AUTOGROUP = "/proc/self/autogroup"


def main(parent: int, command: list[str]) -> None:
    """Sets the process up and executes the command."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the testbed ended before its engine started")
    # A session is scheduled as a group, so its own niceness is what counts where that is on; root may lower both.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    with contextlib.suppress(OSError):
        Path(AUTOGROUP).write_text(str(NICENESS))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
