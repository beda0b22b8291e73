"""A policy against round robin, in figures."""

from __future__ import annotations

import dataclasses
import math

UNFINISHED = 100.0
"""What an episode that did not end adds to a score."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """A policy against round robin (requests in order of arrival) on the same requests.

    The changes are means of ratios less 1, over the lanes of all groups in which both ran to the end; NaN if there is
    none. Below 0 is better.

    Attributes:
      e2e_mean: change of the mean E2E latency.
      e2e_p99: of its 99th percentile.
      ttft_p99: of the 99th percentile of the time to the first token.
      makespan: of the time until the last finish.
      incomplete: share of the policy's episodes that did not end.
    """

    e2e_mean: float
    e2e_p99: float
    ttft_p99: float
    makespan: float
    incomplete: float

    @property
    def score(self) -> float:
        """By which the best policy is chosen, less is better: the mean, and what the tail is worse than round robin's.

        An episode that did not end counts for more than any latency.
        """
        if math.isnan(self.e2e_mean):
            return UNFINISHED
        return self.e2e_mean + max(0.0, self.e2e_p99) + UNFINISHED * self.incomplete

    @property
    def text(self) -> str:
        """In a few words."""
        names = {"e2e_mean": "mean E2E", "e2e_p99": "p99 E2E", "ttft_p99": "p99 TTFT", "makespan": "makespan"}
        changes = ", ".join(f"{name} {100 * getattr(self, field):+.1f} %" for field, name in names.items())
        cut = f", {self.incomplete:.0%} of the episodes did not end" if self.incomplete else ""
        return f"{changes} against round robin{cut}"
