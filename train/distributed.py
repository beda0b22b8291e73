"""Several processes that train one run: joined by JAX's own runtime, and agreed on what they do.

Every process simulates its share of the lanes and sums gradients with the others; checkpoints are written by all of
them; all else is written by the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

from jaxroute.errors import InputError, first_line

HEARTBEAT_S = 100
"""A process that has not been heard of for so long is taken for dead, and all others end."""

PARTING_S = 10
"""How long a process waits for the others when it ends."""

LOST = 1
"""Exit code where another process is gone."""

MOST_BYTES = 4096
"""Of the message of an error that is passed on."""


@dataclasses.dataclass(frozen=True)
class Join:
    """How a process finds the others.

    Attributes:
      coordinator: HOST:PORT of the first process; None where the cluster's environment says it.
      processes: how many there are, likewise.
      process: which one this is, from 0 on, likewise.
      timeout_s: how long to wait for the others.
    """

    coordinator: str | None
    processes: int | None
    process: int | None
    timeout_s: int


@contextlib.contextmanager
def joined(join: Join | None, command: str) -> Iterator[None]:
    """Around all that the processes of a run do together; nothing may have used a device before.

    Whatever ends the block in one process ends all of them: without its part no sum over the devices is complete.

    Args:
      join: how to find the others; None for a run of this process alone, and then this does nothing.
      command: that goes on with a run, for messages.

    Raises:
      InputError: the others were not found.
    """
    if join is None:
        yield
        return
    _initialise(join)
    try:
        yield
    except BaseException as error:
        _leave(error, command)
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this process writes what one process writes."""
    return jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Whether any process says so; all of them have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray([flag], np.int32)).any())


def by_first(action: Callable[[], None]) -> None:
    """Has the first process do something while the others wait.

    Raises:
      InputError: the action's, in every process.
    """
    if jax.process_count() == 1:
        action()
        return
    problem = b""
    if is_first():
        try:
            action()
        except InputError as error:
            problem = str(error).encode()[:MOST_BYTES]
    told = np.zeros(MOST_BYTES, np.int32)
    told[: len(problem)] = np.frombuffer(problem, np.uint8)
    told = multihost_utils.broadcast_one_to_all(told)
    if told.any():
        raise InputError(bytes(told[told > 0].tolist()).decode(errors="replace"))


def check_same(what: str, tree: Any) -> None:
    """Raises InputError where the processes do not all have the same.

    Args:
      what: it is, for the message.
      tree: bytes, or arrays and typed keys that this process holds.
    """
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(leaf if isinstance(leaf, bytes) else np.asarray(_unkeyed(leaf)).tobytes())
    found = multihost_utils.process_allgather(np.frombuffer(digest.digest(), np.int32))
    if others := np.flatnonzero((found != found[:1]).any(axis=1)).tolist():
        names = ", ".join(map(str, others))
        raise InputError(
            f"process {names} and process 0 differ in {what}; start all with the same command, files and versions, "
            "on machines of one kind"
        )


def _unkeyed(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _initialise(join: Join) -> None:
    # What sums over CPU devices of several processes; GPUs have their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Gloo takes sums in the order in which they come: two programs at once may come in another order in each process.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # It takes SIGTERM for itself, which is ours to stop by.
    jax.config.update("jax_enable_preemption_service", False)
    _reach(join)
    try:
        jax.distributed.initialize(
            join.coordinator,
            join.processes,
            join.process,
            initialization_timeout=join.timeout_s,
            heartbeat_timeout_seconds=HEARTBEAT_S,
            shutdown_timeout_seconds=PARTING_S,
        )
    except ValueError as error:
        raise InputError(
            f"--distributed auto: no cluster that jax knows (Slurm, Open MPI, Kubernetes, TPU) is around this process "
            f"({first_line(error)}); give --coordinator HOST:PORT --processes N --process I"
        ) from error
    except RuntimeError as error:
        raise InputError(
            f"process {join.process} could not join the others at {join.coordinator} within {join.timeout_s} s "
            f"({first_line(error)}); start all processes, and check that the address can be reached and is free"
        ) from error


def _reach(join: Join) -> None:
    """Says that it waits, as JAX aborts the process when the others do not come; sees whether the first is there.

    Raises:
      InputError: it is not.
    """
    if join.coordinator is None:
        return
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"process {join.process} of {join.processes} waits for the others at {join.coordinator}, "
        f"for {join.timeout_s} s at most"
    )
    host, _, port = join.coordinator.rpartition(":")
    until = time.monotonic() + join.timeout_s
    while join.process:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise InputError(
                    f"process {join.process} could not join the others at {join.coordinator} within {join.timeout_s} s "
                    f"({first_line(error)}); start process 0, and check that the address can be reached"
                ) from error
            time.sleep(0.2)


def _leave(error: BaseException, command: str) -> NoReturn:
    """Says what happened and ends the process: what runs at a normal exit would wait for those that are gone."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    code: int = LOST
    if isinstance(error, InputError):
        code = 2
        console.print(f"jaxroute: {error}")
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
    elif isinstance(error, KeyboardInterrupt):
        code = 130
        console.print("jaxroute: interrupted")
    elif _is_of_others(error):
        console.print(
            f"jaxroute: process {jax.process_index()} of {jax.process_count()} ends: another one is gone, or a device "
            f"failed ({first_line(error)}); go on from the last checkpoint with {command} --resume RUN in every process"
        )
    else:
        console.print("".join(traceback.format_exception(error)))
    if isinstance(error, InputError | SystemExit):
        _part()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_of_others(error: BaseException) -> bool:
    """Whether something between the devices failed, rather than here."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def _part() -> None:
    """Waits a little until the others have come as far: the first one that ends tears all down."""
    import orbax.checkpoint as ocp  # type: ignore[import-untyped]

    with contextlib.suppress(Exception):
        ocp.multihost.get_barrier_sync_fn()(key="jaxroute_end", timeout_ms=1000 * PARTING_S)
