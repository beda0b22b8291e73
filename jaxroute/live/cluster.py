"""The servers of a live run, and what their step traces say of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.live.client import LiveError
from jaxroute.profiles import StepProfile


@dataclasses.dataclass(frozen=True)
class HeldSteps:
    """How well servers of the testbed kept to their profile.

    Attributes:
      steps: engine steps.
      overrun_share: of them, that took longer than the profile says.
    """

    steps: int
    overrun_share: float


@dataclasses.dataclass(frozen=True)
class LiveCluster:
    """I servers that run.

    Attributes:
      urls: their roots.
      model: that they serve.
      profile: how fast they are.
      traces: [I] files of their engine steps; none where they are not of the testbed.
    """

    urls: tuple[str, ...]
    model: str
    profile: StepProfile
    traces: tuple[Path, ...] = ()

    def held_steps(self, start: float, end: float) -> HeldSteps | None:
        """The steps that began within a span of `time.perf_counter`; None where the servers keep no trace.

        Raises:
          LiveError: a trace cannot be read, or has no step of that time.
        """
        if not self.traces:
            return None
        over = np.concatenate([_overruns(path, start, end) for path in self.traces])
        if not len(over):
            raise LiveError(f"{self.traces[0]}: holds no step of the run; are the servers of the testbed still there?")
        return HeldSteps(len(over), float(over.mean()))


def read_trace(path: Path) -> np.ndarray:
    """A testbed server's trace: one row an engine step, its columns by name, times in seconds of `perf_counter`.

    Raises:
      LiveError: it cannot be read.
    """
    try:
        return np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))
    except (OSError, ValueError) as error:
        raise LiveError(f"{path}: cannot be read ({error}); it must be the trace of a testbed server") from error


def merged_traces(paths: Sequence[Path], start: float, end: float) -> list[np.ndarray]:
    """[I] the rows of each trace whose step began within a span."""
    rows = [read_trace(path) for path in paths]
    return [each[(each["start_s"] >= start) & (each["start_s"] < end)] for each in rows]


def _overruns(path: Path, start: float, end: float) -> np.ndarray:
    """[K] bool, for each step of the span, whether its work took longer than its time."""
    [rows] = merged_traces([path], start, end)
    return rows["late_ms"] + rows["work_ms"] > rows["target_ms"]
