"""What the steps behind a scene's answers computed: by the times of its tokens and the scheduler's rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxroute.profiling.client import Answer
from jaxroute.profiling.line import FEWEST_ENDS, line_through
from jaxroute.profiling.scene import Injected, Played
from jaxroute.profiling.steps import CHAIN, TTFT, Step, kind_of

SAME_STEP_S = 0.002
"""Before the probe's token, another answer of the same step may come by this much."""

SAME_STEP_SHARE = 0.25
"""The same, of the step's time."""

TOGETHER = 0.3
"""Share of a step's time within which first tokens are of the same step."""

NEXT_STEP_S = 0.0005
"""First tokens that come less apart are of one step."""

SAFE = 0.15
"""Share of the blocker's time before whose end its group must be sent, to be sure that it waits."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Steps of known content.

    Attributes:
      steps: those.
      cut_as_expected, cut_otherwise: groups longer than the token budget, by whether their prompts were computed in the
        steps that the scheduler's rules give; those are left out otherwise.
    """

    steps: tuple[Step, ...]
    cut_as_expected: int = 0
    cut_otherwise: int = 0


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A request by the steps of its first and its last token."""

    prompt_tokens: int
    first: int
    last: int

    def begun_by(self, step: int) -> _Sequence:
        """The same where it began no later: an answer may come long after its last token was made."""
        late = max(0, self.first - step)
        return _Sequence(self.prompt_tokens, self.first - late, self.last - late)


class _Timeline:
    """Steps of a probe: step t ends with its token t."""

    def __init__(self, probe: Answer) -> None:
        self.measured_s = probe.token_s
        known = np.flatnonzero(~np.isnan(probe.token_s))
        self.end_s = np.interp(np.arange(len(probe.token_s)), known, probe.token_s[known])

    def __len__(self) -> int:
        return len(self.end_s)

    def step_at(self, time_s: float) -> int:
        """The step whose results came at this time; -1 before the first, beyond the last about what it would be."""
        gap = self.end_s[-1] - self.end_s[-2] if len(self) > 1 else 0.0
        if time_s > self.end_s[-1] + gap > self.end_s[-1]:
            return len(self) - 1 + int((time_s - self.end_s[-1]) / gap)
        at = int(np.searchsorted(self.end_s, time_s, side="right"))
        if at < len(self.end_s):
            gap = self.end_s[at] - self.end_s[at - 1] if at else 0.0
            at += bool(self.end_s[at] - time_s <= min(SAME_STEP_S, SAME_STEP_SHARE * gap))
        return at - 1

    def sequence(self, answer: Answer) -> _Sequence:
        """A request, of which the last token's time is known: it makes one token a step."""
        last = self.step_at(answer.end_s)
        return _Sequence(answer.prompt_tokens, last - answer.output_tokens + 1, last)


def scene_steps(played: Played, *, part: str, name: str, token_budget: int) -> Reconstruction:
    """The steps of a scene whose content is certain.

    Args:
      played: its answers.
      part, name: of the steps.
      token_budget: most tokens of a step.
    """
    line = _Timeline(played.probe)
    settled = line.step_at(played.settled_s)
    batch = [line.sequence(answer).begun_by(settled) for answer in played.batch]
    decoding, context = _decodes(len(line), played.probe.prompt_tokens, batch)
    prefills: list[list[tuple[int, int]]] = [[] for _ in range(len(line))]
    known = np.ones(len(line), bool)
    known[0] = False
    if played.batch:
        known[max(0, line.step_at(min(answer.sent_s for answer in played.batch))) : settled + 1] = False
    cut, otherwise = 0, 0
    for injected in played.injected:
        sequences = [line.sequence(answer) for answer in (injected.blocker, *injected.group)]
        placed = _placed(sequences, decoding, token_budget) if sequences[0].first > settled else None
        if _is_cut(sequences, decoding, token_budget):
            cut, otherwise = cut + (placed is not None), otherwise + (placed is None)
        if placed is None:
            begin = max(0, line.step_at(injected.blocker.sent_s))
            known[begin : max(each.first for each in sequences) + 2] = False
            continue
        for step, new, cached in placed:
            prefills[step].append((new, cached))
    steps = []
    for at in np.flatnonzero(known):
        end_ms = 1e3 * float(line.measured_s[at] - played.probe.sent_s)
        kind = kind_of(prefills[at], int(decoding[at]))
        computed = tuple(prefills[at]), int(decoding[at]), float(context[at])
        steps.append(Step(part, name, kind, *computed, int(at), end_ms))
    return Reconstruction(tuple(steps), cut, otherwise)


def prompt_steps(injected: Injected, *, part: str, name: str, token_budget: int) -> Reconstruction:
    """Without a probe: the time to the first token of a prompt alone, or of a group behind its blocker.

    The blocker's own token does not mark the end of its step well: its way out competes with the step that begins.
    """
    blocker, group = injected.blocker, injected.group
    first = (blocker.prompt_tokens, 0)
    if not group:
        ttft_ms = 1e3 * (_first_s(blocker) - blocker.sent_s)
        return Reconstruction((Step(part, name, TTFT, (first,), 0, 0.0, 0, ttft_ms),) if ttft_ms > 0 else ())
    ends = np.asarray([answer.token_s[0] for answer in group])
    took = float(np.median(ends) - blocker.token_s[0])
    waited = max(answer.sent_s for answer in group) < blocker.token_s[0] - SAFE * blocker.ttft_s
    fits = sum(answer.prompt_tokens for answer in group) <= token_budget
    if not (waited and fits and took > NEXT_STEP_S and float(np.ptp(ends)) <= TOGETHER * took):
        return Reconstruction(())
    prompts = (first, *((answer.prompt_tokens, 0) for answer in group))
    end_ms = 1e3 * float(np.median([_first_s(answer) for answer in group]) - blocker.sent_s)
    return Reconstruction((Step(part, name, CHAIN, prompts, 0, 0.0, 0, end_ms),) if end_ms > 0 else ())


def _first_s(answer: Answer) -> float:
    """When the first token was due, by the line through all of them, on which decode steps end; NaN if too few came."""
    known = np.flatnonzero(~np.isnan(answer.token_s))
    if len(known) < FEWEST_ENDS:
        return float("nan")
    return line_through(known, answer.token_s[known])[1]


def _decodes(steps: int, probe_prompt: int, batch: Sequence[_Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """[steps] sequences that decode in each step, and the contexts that they attend to, summed."""
    at = np.arange(steps)
    decoding, context = (at > 0).astype(int), np.where(at > 0, probe_prompt + at, 0)
    for each in batch:
        decodes = (at > each.first) & (at <= each.last)
        decoding = decoding + decodes
        context = context + np.where(decodes, each.prompt_tokens + at - each.first, 0)
    return decoding, context


def _is_cut(sequences: Sequence[_Sequence], decoding: np.ndarray, token_budget: int) -> bool:
    group = sequences[1:]
    return sum(each.prompt_tokens for each in group) > token_budget - decoding[max(0, sequences[0].first)]


def _placed(
    sequences: Sequence[_Sequence], decoding: np.ndarray, token_budget: int
) -> list[tuple[int, int, int]] | None:
    """(Step, new tokens, cached tokens) of a blocker and its group; None where that is not certain."""
    blocker, *group = sequences
    steps = len(decoding)
    if not 0 < blocker.first < steps or blocker.prompt_tokens > token_budget - decoding[blocker.first]:
        return None
    if any(not blocker.first < each.first < steps for each in group):
        return None
    placed = [(blocker.first, blocker.prompt_tokens, 0)]
    if not _is_cut(sequences, decoding, token_budget):
        return placed + [(each.first, each.prompt_tokens, 0) for each in group]
    step = blocker.first
    # They were sent at once, so whichever came in first ends first.
    queue = [[each.prompt_tokens, 0, each.first] for each in sorted(group, key=lambda each: each.first)]
    while queue:
        step += 1
        if step >= steps:
            return None
        room = token_budget - int(decoding[step])
        for each in queue:
            new = min(each[0] - each[1], room)
            if new > 0:
                placed.append((step, new, each[1]))
            each[1], room = each[1] + new, room - new
        ended = [each for each in queue if each[0] == each[1]]
        if any(each[2] != step for each in ended):
            return None
        queue = [each for each in queue if each[0] > each[1]]
    return placed
