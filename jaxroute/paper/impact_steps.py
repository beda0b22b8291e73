"""Engine steps of runs on one kind of server: lines through their times, and what equations 1 and 2 say of them.

Everything here returns numbers in JSON's own types, to be kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxroute.impact import EPSILON_S
from jaxroute.policies import heuristic
from jaxroute.profiles import StepProfile
from jaxroute.simulate import Fleet, simulate
from jaxroute.step_records import StepRecords, step_records
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

SCHEDULER = "prefill-first"
INSTANCES, RATE = 4, 20.0

GRAD1, GRAD2 = 3.2e-4, 3.3e-5
"""As the paper prints them (sections 4.3 and 5.2)."""

LONGEST_PROMPT, MOST_CONTEXT = 2500, 6000
"""Where the axes of the paper's figures 4a and 4b end, tokens."""

PROMPTS, BETWEEN_PROMPTS_S = 63, 2.0
BATCHES, BATCH_PROMPT, BETWEEN_BATCHES_S = (4, 8, 16, 32), 40, 60.0
SHOWN_STEPS = 300
"""Steps that are kept for a picture."""

Numbers = dict[str, Any]
"""Results in JSON's own types."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A way to read equation 1: what a prompt of p tokens costs where S tokens are in decode.

    Attributes:
      name: as a formula.
      impact: of p [K] and S [K], seconds.
    """

    name: str
    impact: Callable[[np.ndarray, np.ndarray], np.ndarray]


READINGS = (
    Reading("grad1 · (p² + S)", lambda p, s: GRAD1 * (p**2 + s)),
    Reading("grad1 · (p + S)", lambda p, s: GRAD1 * (p + s)),
    Reading("grad1 · p · S", lambda p, s: GRAD1 * p * s),
    Reading("grad1 · p", lambda p, s: GRAD1 * p),
)
"""Of equation 1: as the slides print it (and `jaxroute.impact` computes it), its option `square=False`, a product as
the text may mean it, and what the paper's figure 4a measures."""


def designed_steps(profile: StepProfile) -> Numbers:
    """Steps of prompts alone, to `LONGEST_PROMPT` tokens, and of batches that decode, to `MOST_CONTEXT` in all."""
    prompts = np.linspace(20, LONGEST_PROMPT, PROMPTS).astype(int)
    arrivals = BETWEEN_PROMPTS_S * np.arange(PROMPTS)
    starts = arrivals[-1] + BETWEEN_BATCHES_S * np.repeat(1 + np.arange(len(BATCHES)), BATCHES)
    outputs = np.repeat([MOST_CONTEXT // size - BATCH_PROMPT for size in BATCHES], BATCHES)
    table = RequestTable.create(
        np.concatenate([arrivals, starts]),
        np.concatenate([prompts, np.full_like(outputs, BATCH_PROMPT)]),
        np.concatenate([np.ones_like(prompts), outputs]),
        name="designed",
    )
    steps = _steps(profile, 1, table)
    single = steps.prefills(1) & (steps.resident_tokens == 0)
    batches = []
    for size in BATCHES:
        own = steps.decodes & (steps.decode_seqs == size)
        batches.append({"size": size, **_fit_and_points(steps.resident_tokens[own], steps.duration_s[own])})
    return {"prompt": _fit_and_points(steps.prefill_tokens[single], steps.duration_s[single]), "batches": batches}


def busy_steps(profile: StepProfile, requests: int, seed: int) -> Numbers:
    """Lines through the steps of a fleet under the five-task mix, and what the equations say of its prompts."""
    steps = _steps(profile, INSTANCES, five_task(requests, RATE, seed))
    decodes, single = steps.decodes, steps.prefills(1)
    prompt, resident = steps.prefill_tokens[single].astype(np.float64), steps.resident_tokens[single].astype(np.float64)
    seconds = steps.duration_s[single]
    context, decode_s = steps.resident_tokens[decodes], steps.duration_s[decodes]
    per_token, per_sequence, _, r2 = _least_squares(np.column_stack([context, steps.decode_seqs[decodes]]), decode_s)
    _, per_resident, *_ = _least_squares(np.column_stack([prompt, resident]), seconds)
    return {
        "prompt": _fit_and_points(prompt, seconds),
        "decode": _fit_and_points(context, decode_s),
        "decode_held": {"slope": per_token, "per_sequence": per_sequence, "r2": r2},
        # What the requests in decode add to the time of a prompt, seconds per token.
        "per_resident": per_resident,
        "largest_resident": int(context.max()),
        "readings": [_reading_numbers(reading, prompt, resident, seconds) for reading in READINGS],
        "equation_2": {
            "printed": _share_within(-GRAD2 * resident + prompt),
            "mended": _share_within(-GRAD2 * (resident + prompt)),
        },
    }


def designed(profile: StepProfile) -> Callable[[], Numbers]:
    """`designed_steps` to be called later."""
    return lambda: designed_steps(profile)


def busy(profile: StepProfile, requests: int, seed: int) -> Callable[[], Numbers]:
    """`busy_steps` to be called later."""
    return lambda: busy_steps(profile, requests, seed)


def _steps(profile: StepProfile, instances: int, table: RequestTable) -> StepRecords:
    fleet = Fleet((profile,) * instances, (SCHEDULER,) * instances)
    [result] = simulate(fleet, table, predict(table, "oracle", seed=0), [heuristic("round-robin")])
    return step_records(result)


def _fit_and_points(tokens: np.ndarray, seconds: np.ndarray) -> Numbers:
    """Slope, intercept and R² of the line through some steps, and some of them."""
    slope, intercept, r2 = _least_squares(np.asarray(tokens, np.float64)[:, None], seconds)
    return {"slope": slope, "intercept": intercept, "r2": r2, **_points(tokens, seconds)}


def _least_squares(x: np.ndarray, y: np.ndarray) -> list[float]:
    """Slopes of the columns of x [K, F], the intercept, and R²."""
    columns = np.column_stack([x, np.ones(len(y))]).astype(np.float64)
    # Scaled, since tokens and their number are orders of magnitude apart.
    scale = np.abs(columns).max(axis=0)
    found = np.linalg.lstsq(columns / scale, y, rcond=None)[0] / scale
    spread = np.sum((y - y.mean()) ** 2)
    return [*found.tolist(), float(1 - np.sum((y - columns @ found) ** 2) / spread) if spread > 0 else math.nan]


def _points(x: np.ndarray, seconds: np.ndarray) -> Numbers:
    kept = np.unique(np.linspace(0, len(x) - 1, SHOWN_STEPS).astype(int))
    return {"x": np.asarray(x)[kept].tolist(), "seconds": np.asarray(seconds)[kept].tolist()}


def _reading_numbers(reading: Reading, prompt: np.ndarray, resident: np.ndarray, seconds: np.ndarray) -> Numbers:
    """What a reading says of prompts [K] among resident tokens [K], against the seconds that they took."""
    impact = reading.impact(prompt, resident)
    reward = np.where(impact <= EPSILON_S, 1, 1 - impact / EPSILON_S)
    return {
        "ratio": float(np.median(impact / seconds)),
        "r2": float(np.corrcoef(impact, seconds)[0, 1] ** 2),
        "in_range": float(np.mean(reward >= -1)),
        **_points(impact, seconds),
    }


def _share_within(decode_reward: np.ndarray) -> float:
    """Share of r_d within [-1, 0]."""
    return float(np.mean((decode_reward >= -1) & (decode_reward <= 0)))
