"""The ways that requests can take to live servers: chosen by the client, or through a router."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.live.cluster import LiveCluster
from jaxroute.live.replay import Chooser, FewestOutstanding, Given, TakingTurns
from jaxroute.live.router_process import serve_router, vllm_router
from jaxroute.policies.folder import DEFAULT, DEFAULT_FOLDER

DIRECT, VLLM_ROUTER, JAXROUTE = "direct", "vllm-router", "jaxroute"

SIMULATED = {
    "direct:round-robin": "round-robin",
    "direct:fewest-requests": "join-shortest-queue",
    "vllm-router:round_robin": "round-robin",
    "vllm-router:power_of_two": "power-of-two",
    "vllm-router:cache_aware": None,
}
"""Ways that are not ours, by name, and our simulation of them, where there is one."""

OURS = f"{JAXROUTE}:{DEFAULT}"
"""`jaxroute serve` with the shipped policy, which has the queue in shortest-predicted order."""

FCFS = "+fcfs"
"""Suffix that puts the shipped policy's queue in order of arrival."""

ALL = (*SIMULATED, OURS, OURS + FCFS)


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to the servers.

    Attributes:
      name: `direct:RULE`, `vllm-router:POLICY` or `jaxroute:POLICY`.
      policy: what a router is told.
      simulated: the policy, by name or folder, that simulates it; None where we have none.
    """

    name: str
    policy: str
    simulated: str | None

    @property
    def kind(self) -> str:
        """What decides."""
        return self.name.partition(":")[0]


def ways(names: list[str], folder: Path) -> list[Way]:
    """The ways of those names.

    Args:
      names: `jaxroute:POLICY` takes what `jaxroute serve --policy` takes.
      folder: where the shipped policy is put with its queue in order of arrival, when it is asked for.

    Raises:
      InputError: no such way.
    """
    made = []
    for name in dict.fromkeys(names):
        kind, _, policy = name.partition(":")
        if name in SIMULATED:
            made.append(Way(name, policy, SIMULATED[name]))
        elif name == OURS + FCFS:
            changed = str((folder / "default-fcfs").absolute())
            made.append(Way(name, changed, changed))
        elif kind == JAXROUTE and policy:
            made.append(Way(name, policy, policy))
        elif kind == VLLM_ROUTER and policy:
            made.append(Way(name, policy, None))
        else:
            known = ", ".join(ALL)
            raise InputError(f"--ways: there is no way {name!r}; known: {known}, and either router with its policies")
    return made


def write_fcfs_default(folder: Path) -> None:
    """Copies the shipped policy to `folder/default-fcfs`, its queue in order of arrival.

    Raises:
      OSError: the folder cannot be written.
    """
    copy = folder / "default-fcfs"
    shutil.copytree(DEFAULT_FOLDER, copy, dirs_exist_ok=True)
    file = copy / "policy.json"
    content = json.loads(file.read_text(encoding="utf-8")) | {"router_order": "fcfs", "spf_edges": []}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Entrance:
    """Where requests go in: addresses, and who chooses among them."""

    urls: tuple[str, ...]
    chooser: Chooser


@contextmanager
def opened(
    way: Way, cluster: LiveCluster, requests: int, *, program: str, scrape_s: float, folder: Path
) -> Iterator[Entrance]:
    """The way, ready to be used, with no memory of earlier requests.

    Args:
      way: the way.
      cluster: the servers.
      requests: N, that will come.
      program: the vllm-router to start.
      scrape_s: between two readings of a server's metrics by `jaxroute serve`, seconds.
      folder: for what a router is told, and its log.

    Raises:
      InputError: a router does not start.
    """
    if way.kind == DIRECT:
        chooser = TakingTurns if way.policy == "round-robin" else FewestOutstanding
        yield Entrance(cluster.urls, chooser(len(cluster.urls)))
        return
    router = (
        vllm_router(cluster, way.policy, program, folder)
        if way.kind == VLLM_ROUTER
        else serve_router(cluster, way.policy, scrape_s, folder)
    )
    with router as url:
        yield Entrance((url,), Given(np.zeros(requests, np.int64)))
