"""How a process of a command that runs in several finds the others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.train.distributed import Join


@dataclasses.dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """One process of several, each with devices of its own; without these options the process is alone."""

    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0 and a free port there, for a run in several processes."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many processes there are."""
    process: Annotated[int | None, tyro.conf.arg(metavar="I")] = None
    """Which of them this is, from 0 to N - 1."""
    distributed: Literal["auto"] | None = None
    """auto: take the three from the cluster (Slurm, Open MPI, Kubernetes, TPU)."""
    join_timeout: Annotated[int, tyro.conf.arg(metavar="SECONDS")] = 300
    """How long to wait for the other processes at the start."""

    def join(self) -> Join | None:
        """How to find the others; None where there are none.

        Raises:
          InputError: options that do not go together.
        """
        given = (self.coordinator, self.processes, self.process)
        if self.join_timeout < 1:
            raise InputError(f"--join-timeout is {self.join_timeout}, must be at least 1")
        if self.distributed is not None:
            if any(each is not None for each in given):
                raise InputError("--distributed auto takes no --coordinator, --processes or --process; leave them out")
            return self._join()
        if all(each is None for each in given):
            return None
        if self.coordinator is None or self.processes is None or self.process is None:
            raise InputError("--coordinator HOST:PORT, --processes N and --process I belong together; give all three")
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise InputError(f"--coordinator {self.coordinator}: must be HOST:PORT, such as 10.0.0.1:5555")
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise InputError(
                f"--process {self.process} of --processes {self.processes}: processes are numbered from 0 to "
                f"{max(self.processes - 1, 0)}"
            )
        return self._join()

    def _join(self) -> Join:
        from jaxroute.train.distributed import Join

        return Join(self.coordinator, self.processes, self.process, self.join_timeout)
