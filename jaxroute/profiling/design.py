"""Which requests are sent: spread over what steps can be made of, within what the server can hold."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from jaxroute.errors import InputError
from jaxroute.profiling.scene import PROBE_TOKENS, REST, Injection, Pace, Scene
from jaxroute.profiling.steps import FIT, HOLDOUT

Budget = Literal["quick", "full"]

# Not powers of two, which are the cheap points of a GPU's kernels; the fit never sees the lengths it is judged on.
FIT_TOKENS = (17, 40, 75, 120, 190, 300, 460, 700, 1000, 1500, 2050, 3000, 4000, 6000)
HOLDOUT_TOKENS = (28, 55, 95, 150, 240, 380, 570, 850, 1250, 1750, 2500, 3500, 5000)
FIT_GROUPS = ((70, 70, 70, 70), (130, 130, 260), (400, 400, 400), (900, 500), (1100, 1100, 1100))
HOLDOUT_GROUPS = ((100, 100, 100), (50, 200, 350), (600, 600), (1300, 300))
FIT_CONTEXTS, HOLDOUT_CONTEXTS = (24, 320, 1200, 2900), (140, 700, 2000)
# Prompts that are cut, in token budgets: alone, and together where the model is too short for that.
FIT_CUT = ((1.4,), (2.6,), (0.3, 0.85), (0.6, 0.75))
HOLDOUT_CUT = ((1.8,), (0.45, 0.8))

LONGEST_PROMPT = 12_000
"""Tokens of a prompt beyond which nothing is measured, whatever the model allows."""

BLOCKER_MS = 60.0
"""About how long the blocker's step takes: many times what a client's clock may be off."""

MOST_SEQUENCES = 192
"""Of a batch; beyond it a client sees its own work."""

SHORT, SHORT_TIMES = 250, 3
"""Tokens of prompts that are sent so many times as often: of a step that short, a millisecond of delay is a tenth."""

SHRINK = 0.6
"""Each level of a batch is about this share of the one before."""

KV_SHARE, INJECTION_KV_SHARE = 0.8, 0.4
"""Of the KV cache that is used at most, in all and by an injection: nothing may be preempted."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server can hold.

    Attributes:
      kv_tokens, max_num_seqs, max_num_batched_tokens, max_model_len: as in a profile.
      chunked: whether prompts are computed in chunks.
    """

    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    chunked: bool

    @property
    def most_batch(self) -> int:
        """Sequences of a batch, beside which the probe and two prompts run."""
        return max(0, min(self.max_num_seqs - 3, MOST_SEQUENCES))

    @property
    def whole(self) -> int:
        """Tokens of prompts that are computed in one step whatever else is in it."""
        budget = self.max_num_batched_tokens - self.most_batch - 2
        held = int(INJECTION_KV_SHARE / 2 * self.kv_tokens)
        return min(budget, self.max_model_len - 2, held, LONGEST_PROMPT)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """An injection at an idle server.

    Attributes:
      name, part: of the steps that come of it.
      injection: what is sent.
    """

    name: str
    part: str
    injection: Injection


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is sent, one thing after the other."""

    items: tuple[Scene | Prompts, ...]


@dataclasses.dataclass(frozen=True)
class _Effort:
    """What a budget allows.

    Attributes:
      every: one of so many prompt lengths and groups is used.
      contexts: of the scenes of fit and hold-out, by their place in the list.
      rounds: times that the scenes of the fit are played.
      repeats: times that prompts alone are sent, short ones more often.
      level_steps: steps of a level of the batch.
      setup_ms: that the prompts of a batch may take.
    """

    every: int
    fit_contexts: tuple[int, ...]
    holdout_contexts: tuple[int, ...]
    rounds: int
    repeats: int
    level_steps: int
    setup_ms: float


_EFFORTS: dict[str, _Effort] = {
    "quick": _Effort(2, (0, 2), (1,), 1, 10, 12, 2500.0),
    "full": _Effort(1, (0, 1, 2, 3), (0, 1, 2), 2, 12, 18, 6000.0),
}


def make_plan(limits: Limits, pace: Pace, budget: Budget, seed: int = 0) -> Plan:
    """What to send to a server.

    Args:
      limits: its.
      pace: its.
      budget: how much.
      seed: of the order in which prompts come.

    Raises:
      InputError: the server holds too little to tell the coefficients apart.
    """
    if limits.max_num_seqs < 4 or limits.whole < 64:
        raise InputError(
            f"the server holds {limits.kv_tokens:,} KV tokens and {limits.max_num_seqs} sequences, "
            f"{limits.max_num_batched_tokens} tokens a step: too little to tell the coefficients apart"
        )
    effort, rng = _EFFORTS[budget], np.random.default_rng(seed)
    blocker = int(np.clip(BLOCKER_MS / max(pace.token_ms, 1e-6), 48, limits.whole))
    items: list[Scene | Prompts] = []
    for part, lengths, groups, cuts in (
        (FIT, FIT_TOKENS, FIT_GROUPS, FIT_CUT),
        (HOLDOUT, HOLDOUT_TOKENS, HOLDOUT_GROUPS, HOLDOUT_CUT),
    ):
        whole = _whole_injections(limits, blocker, lengths, groups, effort.every, at_most=part == FIT)
        items += _prompts(part, whole, effort.repeats)
        # A prompt alone is computed in one step wherever it comes in: it needs none ahead of it.
        free = [Injection(each.group[0]) if len(each.group) == 1 else each for each in whole]
        injections = free + _cut_injections(limits, blocker, cuts)
        items += _scenes(part, injections, limits, pace, effort, rng)
    # What is judged by is spread over the run, as the rest is.
    order = rng.permutation(len(items))
    return Plan(tuple(items[at] for at in order))


def _whole_injections(
    limits: Limits,
    blocker: int,
    lengths: tuple[int, ...],
    groups: tuple[tuple[int, ...], ...],
    every: int,
    *,
    at_most: bool,
) -> list[Injection]:
    fitting = [(length,) for length in lengths if length <= limits.whole][::every]
    if at_most and (limits.whole,) not in fitting:
        fitting.append((limits.whole,))
    several = [group for group in groups if sum(group) <= limits.whole and len(group) < limits.max_num_seqs][::every]
    return [Injection(blocker, group) for group in (*fitting, *several)]


def _cut_injections(limits: Limits, blocker: int, cuts: tuple[tuple[float, ...], ...]) -> list[Injection]:
    if not limits.chunked:
        return []
    longest = min(limits.max_model_len - 2, LONGEST_PROMPT)
    budget = limits.max_num_batched_tokens
    sizes = [tuple(int(share * budget) for share in shares) for shares in cuts]
    held = INJECTION_KV_SHARE * limits.kv_tokens - blocker
    return [Injection(blocker, size) for size in sizes if max(size) <= longest and sum(size) <= held]


def _prompts(part: str, injections: list[Injection], repeats: int) -> list[Prompts]:
    """Groups behind a blocker; blockers alone, to compare with; and each other length alone once."""
    short = [injection for injection in injections if sum(injection.group) <= SHORT]
    groups = (injections + short * (SHORT_TIMES - 1)) * repeats
    blockers = [Injection(injections[0].blocker)] * max(12, len(groups) // 2)
    alone = [Injection(injection.group[0]) for injection in injections if len(injection.group) == 1]
    return [Prompts(f"prompts-{part}", part, each) for each in (*groups, *blockers, *alone)]


def _scenes(
    part: str, injections: list[Injection], limits: Limits, pace: Pace, effort: _Effort, rng: np.random.Generator
) -> list[Scene]:
    contexts, rounds = (FIT_CONTEXTS, effort.rounds) if part == FIT else (HOLDOUT_CONTEXTS, 1)
    wanted = effort.fit_contexts if part == FIT else effort.holdout_contexts
    # What the server cannot hold is replaced by shorter contexts.
    order = (*wanted, *(at for at in range(len(contexts)) if at not in wanted))
    scenes: list[Scene] = []
    for number in range(rounds):
        found: list[Scene] = []
        for at in order:
            shuffled = tuple(injections[index] for index in rng.permutation(len(injections)))
            scene = _scene(f"context-{contexts[at]}-{number}", part, contexts[at], shuffled, limits, pace, effort)
            if scene is not None and len(found) < len(wanted):
                found.append(scene)
        scenes += found
    return scenes


def _scene(
    name: str,
    part: str,
    context: int,
    injections: tuple[Injection, ...],
    limits: Limits,
    pace: Pace,
    effort: _Effort,
) -> Scene | None:
    """A batch at one context length; None where the server cannot hold it."""
    largest = max(injection.tokens for injection in injections)
    most = int(min(limits.most_batch, effort.setup_ms / max(1e-6, pace.token_ms * context)))
    while most >= 1:
        begins = _begins(most, context, limits)
        outputs = _outputs(begins, len(injections), effort)
        last = max(begin + output for begin, output in zip(begins, outputs, strict=True))
        probe = last + _slack(most) + 2 * effort.level_steps
        held = sum(context + output for output in outputs) + largest + PROBE_TOKENS + probe
        fits = context + max(outputs) <= limits.max_model_len and PROBE_TOKENS + probe <= limits.max_model_len
        if held <= KV_SHARE * limits.kv_tokens and fits:
            return Scene(f"{name}-{part}", part, context, tuple(outputs), probe, injections)
        most = min(most - 1, int(0.9 * most))
    return None


def _begins(most: int, context: int, limits: Limits) -> list[int]:
    """Steps until each prompt of a batch is computed."""
    per_step = max(1, limits.max_num_batched_tokens - most)
    return [(number + 1) * context // per_step for number in range(most)]


def _outputs(begins: list[int], injections: int, effort: _Effort) -> list[int]:
    """Output tokens of each request of a batch, so that it shrinks level by level; those that came first end first."""
    most = len(begins)
    levels = _levels(most)
    level_steps = max(effort.level_steps, math.ceil(injections * (REST + 4) / len(levels)))
    level = [sum(most - number <= below for below in levels[1:]) for number in range(most)]
    return [begins[-1] - begins[at] + _slack(most) + (level[at] + 1) * level_steps for at in range(most)]


def _slack(most: int) -> int:
    """Steps until a batch has come in, beyond those that its prompts take."""
    return 4 + most // 8


def _levels(most: int) -> list[int]:
    """Sizes of a batch, the largest first."""
    levels = [most]
    while levels[-1] > 1:
        levels.append(max(1, min(levels[-1] - 1, round(SHRINK * levels[-1]))))
    return levels
