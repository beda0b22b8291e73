"""Measured steps that computed the same -> one observation, and how far its time may be off."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from jaxroute.profiling.steps import CHAIN, DECODE, MIXED, PREFILL, TTFT, Step, times_ms

NORMAL_SPREAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

UNDELAYED = 0.25
"""Quantile of the times to a first token that is taken: what delays them comes on top, and only sometimes."""

_Key = tuple[object, ...]


@dataclasses.dataclass(frozen=True)
class Observation:
    """A step, and how far its time may be off.

    Attributes:
      step: kind `prefill`, `decode` or `mixed`.
      error_ms: standard error of its time, by the spread of what it was taken from.
    """

    step: Step
    error_ms: float


def observations(steps: Sequence[Step]) -> list[Observation]:
    """One for all steps that computed the same in the same scene (contexts that grow by a token each aside).

    Decode and mixed steps: the median, which a late wake-up here or there does not move. Prefill steps: the first token
    behind a blocker, less that of a prompt like the blocker alone.
    """
    jitter = jitter_ms(steps)
    found = []
    for group in _alike([step for step in steps if step.kind in (DECODE, MIXED)]).values():
        context = float(np.mean([step.context_tokens for step in group]))
        typical = dataclasses.replace(group[0], context_tokens=context, ms=float(np.median(times_ms(group))))
        found.append(Observation(typical, jitter / np.sqrt(len(group))))
    return found + _prefills(steps)


def jitter_ms(steps: Sequence[Step]) -> float:
    """Standard deviation of a single step's time, from decode steps that computed the same."""
    groups = _alike([step for step in steps if step.kind == DECODE]).values()
    spreads = [_spread(times_ms(group)) for group in groups if len(group) > 3]
    return float(np.median(spreads)) if spreads else 0.0


def _prefills(steps: Sequence[Step]) -> list[Observation]:
    alone: dict[int, list[float]] = defaultdict(list)
    for step in steps:
        if step.kind == TTFT:
            alone[step.new_tokens].append(step.ms)
    found = []
    for group in _alike([step for step in steps if step.kind == CHAIN]).values():
        blocker, *behind = group[0].prefills
        before, after = np.asarray(alone[blocker[0]]), times_ms(group)
        if not len(before):
            continue
        ms = _undelayed(after) - _undelayed(before)
        spread = _spread(before)
        error = spread * float(np.sqrt(1 / len(before) + 1 / len(after)))
        if ms > 0:
            found.append(Observation(dataclasses.replace(group[0], kind=PREFILL, prefills=tuple(behind), ms=ms), error))
    return found


def _undelayed(times: np.ndarray) -> float:
    return float(np.quantile(times, UNDELAYED, method="median_unbiased"))


def _spread(times: np.ndarray) -> float:
    return NORMAL_SPREAD * float(np.median(np.abs(times - np.median(times))))


def _alike(steps: Sequence[Step]) -> dict[_Key, list[Step]]:
    alike: dict[_Key, list[Step]] = defaultdict(list)
    for step in steps:
        alike[step.part, step.scene, step.kind, step.prefills, step.decoding].append(step)
    return alike
