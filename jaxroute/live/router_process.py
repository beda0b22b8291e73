"""Routers as processes of their own in front of live servers, from when they answer until nobody needs them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from jaxroute.errors import InputError
from jaxroute.live.cluster import LiveCluster
from jaxroute.testbed.priority import hurry_router
from jaxroute.testbed.processes import take_ports

HOST = "127.0.0.1"
START_S, STOP_S = 120.0, 15.0
PATIENT_S = 3600.0
"""In overload a request may wait for minutes, and no router is to give it up."""

MANY = 1_000_000

ENGINE_START = Path(__file__).parents[1] / "testbed" / "engine" / "start.py"
"""Gives a process the engines' priority, and ends it with this one."""


@contextmanager
def serve_router(cluster: LiveCluster, policy: str, scrape_s: float, folder: Path) -> Iterator[str]:
    """`jaxroute serve` with the given policy; yields its address.

    Args:
      cluster: the servers.
      policy: as `jaxroute serve --policy` takes it.
      scrape_s: between two readings of a server's metrics, seconds.
      folder: for its profile, configuration and log.

    Raises:
      InputError: it does not start.
    """
    port, admin_port = take_ports(2, None)
    profile = folder / "profile.json"
    profile.write_text(json.dumps(dataclasses.asdict(cluster.profile), indent=2) + "\n", encoding="utf-8")
    config = {
        "backends": [{"url": url, "name": backend_name(index)} for index, url in enumerate(cluster.urls)],
        "profile": str(profile.absolute()),
        "policy": policy,
        "predictor": "none",
        # Random tokens have no length that a predictor could see: the requests state one, as wrong as a predictor's.
        "trust_predictions": True,
        "listen": {"host": HOST, "port": port},
        "admin": {"host": HOST, "port": admin_port},
        "limits": {"queue": MANY, "wait_s": PATIENT_S},
        "timeouts": {"answer_s": PATIENT_S, "first_byte_s": PATIENT_S, "stream_s": PATIENT_S},
        "watching": {"scrape_s": scrape_s},
        "log_level": "warning",
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "jaxroute", "serve", "--config", str(file)]
    with _running(command, port, folder / "serve.log") as url:
        yield url


@contextmanager
def vllm_router(cluster: LiveCluster, policy: str, program: str, folder: Path) -> Iterator[str]:
    """PyPI's vllm-router with the given policy; yields its address.

    Raises:
      InputError: it does not start.
    """
    port, metrics_port = take_ports(2, None)
    options = {
        "policy": policy,
        "host": HOST,
        "port": port,
        "prometheus-port": metrics_port,
        "log-level": "warning",
        "worker-startup-check-interval": 1,
        "request-timeout-secs": int(PATIENT_S),
        "max-concurrent-requests": MANY,
        "queue-size": MANY,
        "queue-timeout-secs": int(PATIENT_S),
    }
    command = [program, "--worker-urls", *cluster.urls]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with _running(command, port, folder / "vllm-router.log") as url:
        yield url


def backend_name(index: int) -> str:
    """What `jaxroute serve` calls a server."""
    return f"engine-{index}"


@contextmanager
def _running(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    url = f"http://{HOST}:{port}"
    started = [sys.executable, str(ENGINE_START), str(os.getpid()), *command]
    with log.open("ab") as file:
        process = subprocess.Popen(
            started, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_until_ready(process, command[0], url, log)
        hurry_router(process.pid)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], program: str, url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = "\n  ".join(log.read_text(errors="replace").splitlines()[-8:])
            raise InputError(f"{program} ended with code {process.returncode}; the end of {log}:\n  {tail}")
        try:
            with urllib.request.urlopen(f"{url}/v1/models", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise InputError(f"the router at {url} was not ready within {START_S:g} s; see {log}")
