"""Engine steps as they were measured: what each computed and when it ended; kept in a CSV beside the profile."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.text_file import read_lines

PREFILL, DECODE, MIXED = "prefill", "decode", "mixed"
REGIMES = (PREFILL, DECODE, MIXED)

TTFT = "ttft"
"""Not a step, but the time to the first token of one prompt at an idle server: its step and the front end's share."""

CHAIN = "chain"
"""Two steps and the front end's share: from sending a prompt, the first of the prefills, to the first token of those
that wait for its end and are the second step."""

FIT, HOLDOUT = "fit", "holdout"

COLUMNS = ("part", "scene", "kind", "new_tokens", "cached_tokens", "decoding", "context_tokens", "at", "end_ms")

REMEDY = "give the raw file that `jaxroute profile` wrote"


@dataclasses.dataclass(frozen=True)
class Step:
    """One measured step.

    Attributes:
      part: `fit` or `holdout`: whether the fit may see it.
      scene: the series of requests that it comes from.
      kind: `decode`, `mixed`, `ttft` or `chain`; `prefill` comes of the last two.
      prefills: (new tokens p_i, tokens already in the KV cache k_i) of each prefill.
      decoding: n, sequences that decode.
      context_tokens: C, sum of the contexts that they attend to.
      at: its number in the scene; the step before it has the one before, if that is known.
      end_ms: when its tokens came, since the scene began; NaN where they came together with those of the next one. Of
        `ttft` and `chain`: since the prompt was sent.
    """

    part: str
    scene: str
    kind: str
    prefills: tuple[tuple[int, int], ...]
    decoding: int
    context_tokens: float
    at: int
    end_ms: float

    @property
    def new_tokens(self) -> int:
        """P, prompt tokens."""
        return sum(new for new, _ in self.prefills)


def kind_of(prefills: Sequence[object], decoding: int) -> str:
    """The regime of a step."""
    if not prefills:
        return DECODE
    return MIXED if decoding else PREFILL


def features(steps: Sequence[Step]) -> np.ndarray:
    """[steps, 7] float64: N = p + n, C, n, sum p_i^2, sum p_i*k_i, [p > 0], [n > 0]."""
    rows = [
        (
            step.new_tokens + step.decoding,
            step.context_tokens,
            step.decoding,
            sum(new**2 for new, _ in step.prefills),
            sum(new * kept for new, kept in step.prefills),
            bool(step.prefills),
            step.decoding > 0,
        )
        for step in steps
    ]
    return np.asarray(rows, np.float64).reshape(-1, 7)


def header_lines(facts: dict[str, object]) -> str:
    """The beginning of a raw file: what is known of the server, in a comment, and the names of the columns."""
    return f"# {json.dumps(facts)}\n{','.join(COLUMNS)}\n"


def step_lines(steps: Iterable[Step]) -> str:
    """Rows of a raw file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for step in steps:
        new, cached = ("|".join(str(prefill[at]) for prefill in step.prefills) for at in (0, 1))
        context, end = round(step.context_tokens), f"{step.end_ms:.4f}"
        writer.writerow((step.part, step.scene, step.kind, new, cached, step.decoding, context, step.at, end))
    return text.getvalue()


def read_raw(path: Path) -> tuple[dict[str, object], list[Step]]:
    """Reads a raw file: the server's facts and the steps.

    Raises:
      InputError: it is none, or one of its rows is broken.
    """
    lines = read_lines(path)
    if len(lines) < 2 or not lines[0].startswith("# ") or tuple(lines[1].split(",")) != COLUMNS:
        raise InputError(f"{path}: is no file of measured steps; {REMEDY}")
    try:
        facts = json.loads(lines[0][2:])
    except ValueError as error:
        raise InputError(f"{path}: line 1: not JSON ({error}); {REMEDY}") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path}: line 1: must be a JSON object; {REMEDY}")
    rows = csv.reader(lines[2:])
    return facts, [_step(row, f"{path}: line {number}") for number, row in enumerate(rows, start=3) if row]


def _step(row: list[str], place: str) -> Step:
    try:
        part, scene, kind, new, cached, decoding, context, at, end = row
        pairs = zip(_numbers(new), _numbers(cached), strict=True)
        step = Step(part, scene, kind, tuple(pairs), int(decoding), float(context), int(at), float(end))
    except ValueError as error:
        raise InputError(f"{place}: {error}; {REMEDY}") from error
    numbers = (*(number for pair in step.prefills for number in pair), step.decoding, step.context_tokens)
    if part not in (FIT, HOLDOUT) or kind not in (*REGIMES, TTFT, CHAIN) or min(numbers) < 0:
        raise InputError(f"{place}: an unknown part or kind, or a negative number; {REMEDY}")
    prompts = {TTFT: step.prefills[1:] == (), CHAIN: len(step.prefills) > 1}
    if kind_of(step.prefills, step.decoding) != (PREFILL if kind in prompts else kind) or not prompts.get(kind, True):
        raise InputError(f"{place}: says {kind}, but its tokens are another's; {REMEDY}")
    if math.isinf(step.end_ms) or step.end_ms < 0 or not math.isfinite(step.context_tokens):
        raise InputError(f"{place}: {end} ms is no time of a step; {REMEDY}")
    return step


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split("|") if part]
