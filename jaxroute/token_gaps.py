"""Gaps between the tokens of an engine's running sequences, and which of them prompts made long (the TBT spikes).

Axis letter: K gaps.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.results import Timeline

SPIKE = 2.0
"""A gap with a prompt in it is a spike where it is so many times as long as the median gap without."""

SLACK_S = 1e-4
"""Below it, an engine was not idle between two steps."""


@dataclasses.dataclass(frozen=True)
class Gaps:
    """K times from one token of an instance's running sequences to the next.

    Attributes:
      instance: [K] int64.
      end_s: [K] float64, when the later token came.
      gap_s: [K] float64.
      prompt_tokens: [K] int64, prompt tokens that the instance computed in the gap, those of restarts included.
    """

    instance: np.ndarray
    end_s: np.ndarray
    gap_s: np.ndarray
    prompt_tokens: np.ndarray

    @property
    def plain_s(self) -> float:
        """Median gap in which no prompt was computed; NaN where there is none."""
        plain = self.gap_s[self.prompt_tokens == 0]
        return float(np.median(plain)) if len(plain) else float("nan")

    @property
    def spikes(self) -> np.ndarray:
        """[K] bool, gaps that prompts made `SPIKE` times as long as the median one without."""
        return (self.prompt_tokens > 0) & (self.gap_s >= SPIKE * self.plain_s)


def token_gaps(timeline: Timeline) -> Gaps:
    """The gaps of a run, instance by instance; none across a time in which the instance had nothing to do."""
    parts = [_of_instance(timeline, int(instance)) for instance in np.unique(timeline.step_instance)]
    if not parts:
        none = np.zeros(0, np.int64)
        return Gaps(none, none.astype(np.float64), none.astype(np.float64), none)
    return Gaps(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _of_instance(timeline: Timeline, instance: int) -> tuple[np.ndarray, ...]:
    own = np.flatnonzero(timeline.step_instance == instance)
    own = own[np.argsort(timeline.step_start_s[own], kind="stable")]
    end_s = timeline.step_start_s[own] + timeline.step_duration_s[own]
    busy_s = np.cumsum(timeline.step_duration_s[own])
    prompts = np.cumsum(timeline.step_prefill_tokens[own])
    yields = np.flatnonzero(timeline.step_decode_seqs[own] > 0)
    before, after = yields[:-1], yields[1:]
    gap_s = end_s[after] - end_s[before]
    # Time that was worked in the gap; less than the gap where the engine was idle.
    worked = np.abs(busy_s[after] - busy_s[before] - gap_s) < SLACK_S
    kept = [each[worked] for each in (end_s[after], gap_s, prompts[after] - prompts[before])]
    return (np.full(int(worked.sum()), instance, np.int64), *kept)
