"""When steps ended -> how long they took.

A token may be late for many reasons, all of which delay it: the server's front end and the client share processors with
whatever else runs, and a step that computes a prompt begins with work that competes with the tokens of the step before.
So a time is never the difference of two tokens. While the same sequences decode, step after step takes the same time,
and their ends lie on a line: its slope is the decode step, and from the line before to the line after some prompts is
the time of the steps that computed them. At an idle server, the lower quartile of many times to a first token is taken.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from jaxroute.profiling.line import FEWEST_ENDS, line_through
from jaxroute.profiling.steps import CHAIN, DECODE, MIXED, PREFILL, TTFT, Step

NORMAL_SPREAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

UNDELAYED = 0.25
"""Quantile of the times to a first token that is taken."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """Some steps, how long they took together, and how far that may be off.

    Attributes:
      kind: `prefill`, `decode` or `mixed`.
      steps: what was computed; one step, or several that followed each other.
      ms: their time.
      error_ms: its standard error, by the spread of what it was taken from.
    """

    kind: str
    steps: tuple[Step, ...]
    ms: float
    error_ms: float


@dataclasses.dataclass(frozen=True)
class _Line:
    """Ends of consecutive decode steps of the same sequences.

    Attributes:
      steps: those.
      ends: how many of them are known.
      slope_ms: of a step.
      zero_ms: where the line is at step number 0.
      residuals_ms: of the known ends.
    """

    steps: tuple[Step, ...]
    ends: int
    slope_ms: float
    zero_ms: float
    residuals_ms: np.ndarray

    def at(self, number: int) -> float:
        """The end of a step by the line."""
        return self.zero_ms + self.slope_ms * number

    def error_ms(self, jitter: float) -> float:
        """Standard error of its ends: a line with late tokens among its own is worth less than others."""
        own = float(np.sqrt(np.sum(self.residuals_ms**2) / (self.ends - 2)))
        return max(jitter, own) / float(np.sqrt(self.ends))


def observations(steps: Sequence[Step]) -> list[Observation]:
    """What steps of one part, fit or hold-out, say of step times."""
    found = []
    jitter = jitter_ms(steps)
    for scene in _scenes(steps):
        blocks = [_line_or_steps(block) for block in _blocks(scene)]
        lines = [block for block in blocks if isinstance(block, _Line)]
        found += [_decode(line, jitter) for line in lines]
        found += _between(blocks, jitter)
    return found + _prefills(steps)


def jitter_ms(steps: Sequence[Step]) -> float:
    """Standard deviation of when a step's tokens come, about the lines."""
    residuals = [
        block.residuals_ms
        for scene in _scenes(steps)
        for block in map(_line_or_steps, _blocks(scene))
        if isinstance(block, _Line)
    ]
    # Two numbers of each line are fitted to it.
    free = sum(len(each) for each in residuals) / max(1, sum(len(each) - 2 for each in residuals))
    return float(np.sqrt(free)) * _spread(np.concatenate(residuals)) if residuals else 0.0


def _scenes(steps: Sequence[Step]) -> list[list[Step]]:
    scenes: dict[tuple[str, str], list[Step]] = defaultdict(list)
    for step in steps:
        if step.kind in (DECODE, MIXED):
            scenes[step.part, step.scene].append(step)
    return [sorted(scene, key=lambda step: step.at) for scene in scenes.values()]


def _blocks(scene: list[Step]) -> list[list[Step]]:
    """Decode steps of the same sequences, and steps with prompts, each as far as they follow each other.

    Where a step between two of them is not known, an empty block is.
    """
    blocks: list[list[Step]] = []
    for step in scene:
        last = blocks[-1][-1] if blocks else None
        if last is not None and last.at + 1 != step.at:
            blocks.append([])
        alike = last is not None and last.kind == step.kind and (step.kind == MIXED or last.decoding == step.decoding)
        if last is not None and alike and last.at + 1 == step.at:
            blocks[-1].append(step)
        else:
            blocks.append([step])
    return blocks


def _line_or_steps(block: list[Step]) -> _Line | list[Step]:
    """A line through the ends of decode steps, robust against single late ones; the steps where there is none."""
    ends = [(step.at, step.end_ms) for step in block if not np.isnan(step.end_ms)]
    if not block or block[0].kind != DECODE or len(ends) < FEWEST_ENDS:
        return block
    number, end_ms = np.asarray(ends).T
    slope, zero = line_through(number, end_ms)
    return _Line(tuple(block), len(ends), slope, zero, end_ms - zero - slope * number)


def _decode(line: _Line, jitter: float) -> Observation:
    context = float(np.mean([step.context_tokens for step in line.steps]))
    typical = dataclasses.replace(line.steps[0], context_tokens=context)
    return Observation(DECODE, (typical,), line.slope_ms, line.error_ms(jitter) * float(np.sqrt(12)) / line.ends)


def _between(blocks: list[_Line | list[Step]], jitter: float) -> list[Observation]:
    """Steps from one line to the next, where all of them are known."""
    found = []
    before: _Line | None = None
    steps: list[Step] = []
    for block in blocks:
        if not isinstance(block, _Line):
            # An empty block is a gap: what comes behind it has no line before it.
            before, steps = (before, steps + block) if block else (None, [])
            continue
        if before is not None and steps:
            ms = block.at(steps[-1].at) - before.at(steps[0].at - 1)
            error = 2 * float(np.hypot(before.error_ms(jitter), block.error_ms(jitter)))
            kind = MIXED if any(step.kind == MIXED for step in steps) else DECODE
            if ms > 0:
                found.append(Observation(kind, tuple(steps), ms, error))
        before, steps = block, []
    return found


def _prefills(steps: Sequence[Step]) -> list[Observation]:
    """The first token behind a blocker, less that of a prompt like the blocker alone."""
    alone: dict[int, list[float]] = defaultdict(list)
    chains: dict[tuple[tuple[int, int], ...], list[Step]] = defaultdict(list)
    for step in steps:
        if step.kind == TTFT:
            alone[step.new_tokens].append(step.end_ms)
        elif step.kind == CHAIN:
            chains[step.prefills].append(step)
    found = []
    for (blocker, *behind), group in chains.items():
        before, after = np.asarray(alone[blocker[0]]), np.asarray([step.end_ms for step in group])
        if not len(before):
            continue
        ms = _undelayed(after) - _undelayed(before)
        error = _spread(before) * float(np.sqrt(1 / len(before) + 1 / len(after)))
        if ms > 0:
            step = dataclasses.replace(group[0], kind=PREFILL, prefills=tuple(behind))
            found.append(Observation(PREFILL, (step,), ms, error))
    return found


def _undelayed(times: np.ndarray) -> float:
    return float(np.quantile(times, UNDELAYED, method="median_unbiased"))


def _spread(values: np.ndarray) -> float:
    return NORMAL_SPREAD * float(np.median(np.abs(values - np.median(values))))
