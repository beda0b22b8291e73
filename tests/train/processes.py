"""Several processes on this machine, each with CPU devices of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def started(command: Sequence[str], devices: int) -> subprocess.Popen[str]:
    """A Python process with so many CPU devices, of which both outputs come as one."""
    flags = DEVICES.sub("", os.environ.get("XLA_FLAGS", ""))
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}", "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(processes: Sequence[subprocess.Popen[str]], timeout_s: float = 300) -> list[tuple[int, str]]:
    """Exit code and output of each; none is left behind."""
    try:
        texts = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


def trainings(*options: str, own: Sequence[Sequence[str]] = ((), ()), devices: int = 4) -> list[subprocess.Popen[str]]:
    """`jaxroute train` in two processes that know of each other, each with options of its own."""
    join = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--join-timeout", "60"]
    command = ["-m", "jaxroute", "train", *options, *join]
    return [started([*command, "--process", str(number), *each], devices) for number, each in enumerate(own)]


def training(*options: str, devices: int) -> tuple[int, str]:
    """`jaxroute train` in one process."""
    return ended([started(["-m", "jaxroute", "train", *options], devices)])[0]


def alone(directory: Path) -> list[str]:
    """Names of what is in a folder, TensorBoard's files apart."""
    return sorted(path.name for path in directory.iterdir() if "tfevents" not in path.name)
