"""One engine's process, from its start to its sure end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.testbed.vllm_command import HOST

STOP_S, KILL_S, POLL_S = 10.0, 2.0, 0.02
TAIL_LINES = 8


class Engine:
    """A vLLM server on a port of the loopback address; its log and trace are files."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> None:
        self.url = f"http://{HOST}:{port}"
        self._log = log
        with log.open("wb") as file:
            # A session of its own: Ctrl-C at the terminal is for the testbed, which then stops it, children and all.
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The API server's process id, and its group's."""
        return self._process.pid

    def check(self) -> None:
        """Raises InputError, with the end of its log, where the engine has died."""
        code = self._process.poll()
        if code is not None:
            told = "\n  ".join(self._told())
            raise InputError(f"the engine at {self.url} ended with code {code}; its log says:\n  {told}")

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask_to_stop(self) -> None:
        """Tells it to stop; returns at once."""
        self._signal(signal.SIGTERM)

    def kill(self, deadline: float) -> None:
        """Waits until it has stopped, or `time.monotonic()` is `deadline`; then ends all that is left of its group."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._wait_for_group(deadline)
        self._signal(signal.SIGKILL)
        self._process.wait()
        # Where nobody collects orphans, those that were killed are listed for ever.
        self._wait_for_group(time.monotonic() + KILL_S)

    def _told(self) -> list[str]:
        """The end of its log, and the last errors above that: the cause is often far from the end."""
        lines = self._log.read_text(errors="replace").splitlines()
        # A library's own bookkeeping, whenever a process ends.
        lines = [line for line in lines if not line.startswith((" - ", "nanobind:", "See https://nanobind"))]
        end = lines[-TAIL_LINES:]
        errors = [line for line in lines[:-TAIL_LINES] if "Error" in line][-TAIL_LINES:]
        return [*dict.fromkeys(errors), *end]

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def _wait_for_group(self, deadline: float) -> None:
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(self.pid, 0)
                time.sleep(POLL_S)


def take_ports(count: int, base: int | None) -> list[int]:
    """Ports of the loopback address that nothing listens on.

    Raises:
      InputError: one of those from `base` on is taken.
    """
    held: list[socket.socket] = []
    try:
        for index in range(count):
            port = 0 if base is None else base + index
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((HOST, port))
            except OSError as error:
                raise InputError(
                    f"port {port} of {HOST} is taken ({error.strerror}); give another base port"
                ) from error
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()
