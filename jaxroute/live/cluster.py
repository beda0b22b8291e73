"""The servers of a live run, and what their step traces say of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxroute.live.client import LiveError
from jaxroute.profiles import StepProfile
from jaxroute.testbed import StepTrace, Testbed, read_trace


@dataclasses.dataclass(frozen=True)
class HeldSteps:
    """How well servers of the testbed kept to their profile.

    Attributes:
      steps: engine steps.
      overrun_share: of them, whose real work took longer than the profile says.
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

    @classmethod
    def of(cls, testbed: Testbed) -> LiveCluster:
        """The engines of a testbed that has started."""
        return cls(testbed.urls, testbed.model, testbed.profile, testbed.traces)

    def steps(self, start: float, end: float) -> list[StepTrace]:
        """[I] the steps that began within a span of `time.perf_counter`; empty where the servers keep no trace."""
        return [read_trace(path).between(start, end) for path in self.traces]

    def held_steps(self, start: float, end: float) -> HeldSteps | None:
        """The steps of a span in numbers; None where the servers keep no trace.

        Raises:
          LiveError: the traces have no step of that time.
        """
        if not self.traces:
            return None
        over = np.concatenate([each.overran for each in self.steps(start, end)])
        if not len(over):
            raise LiveError(f"{self.traces[0]}: holds no step of the run; are the servers of the testbed still there?")
        return HeldSteps(len(over), float(over.mean()))
