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
      longest_stall_ms: by which the worst of them ended too late; in a starved cluster a single one of 100 ms decides
        differently what is preempted from then on.
      lost_share: time that all steps took too long, of what they were to take.
    """

    steps: int
    overrun_share: float
    longest_stall_ms: float
    lost_share: float


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
        traces = self.steps(start, end)
        over, held, target = (
            np.concatenate([getattr(each, name) for each in traces]) for name in ("overran", "held_ms", "target_ms")
        )
        if not len(over):
            raise LiveError(f"{self.traces[0]}: holds no step of the run; are the servers of the testbed still there?")
        late = np.where(over, held - target, 0.0)
        return HeldSteps(len(over), float(over.mean()), float(late.max()), float(late.sum() / target.sum()))
