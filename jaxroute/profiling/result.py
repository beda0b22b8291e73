"""Measured steps -> the profile, and what is to be said of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.output import atomic_path
from jaxroute.profiles import StepProfile
from jaxroute.profiling.fit import Fit, errors_percent, fit_coefficients, step_times
from jaxroute.profiling.observe import Observation, jitter_ms, observations
from jaxroute.profiling.run import Facts
from jaxroute.profiling.steps import DECODE, FIT, HOLDOUT, TTFT, Step

NOISY = 0.05
"""Standard deviation of a token's time, in decode steps, from which on the measurement counts as noisy."""

TYPICAL_PROMPT = 1024
"""Tokens of the prompt at which grad1 takes the slope of the prefill time; as in the shipped profiles."""

MEANINGLESS_DIGITS = 6


@dataclasses.dataclass(frozen=True)
class RegimeError:
    """How far the model is off in steps that the fit did not see.

    Attributes:
      regime: `prefill`, `decode` or `mixed`.
      steps: distinct ones.
      median_percent, p90_percent: of the absolute error of the step time.
      noise_percent: median standard error of the measured time itself, which the other two contain.
    """

    regime: str
    steps: int
    median_percent: float
    p90_percent: float
    noise_percent: float


@dataclasses.dataclass(frozen=True)
class Result:
    """A profile, how it came to be, and how good it is."""

    profile: StepProfile
    fit: Fit
    errors: tuple[RegimeError, ...]
    noise: float
    warnings: tuple[str, ...]


def make_result(
    facts: Facts, steps: Sequence[Step], *, name: str, hardware: str, source: str, warnings: Sequence[str] = ()
) -> Result:
    """Fits a profile.

    Args:
      facts: of the server.
      steps: measured ones, of the fit and held out.
      name, hardware, source: of the profile.
      warnings: of the measurement.

    Raises:
      InputError: the steps do not suffice.
    """
    seen = {part: observations([step for step in steps if step.part == part]) for part in (FIT, HOLDOUT)}
    fit = fit_coefficients(seen[FIT])
    found = errors_percent(fit.coefficients_ms, seen[HOLDOUT])
    errors = tuple(
        RegimeError(
            regime, len(each), float(np.median(each)), float(np.quantile(each, 0.9)), _noise(seen[HOLDOUT], regime)
        )
        for regime, each in found.items()
        if len(each)
    )
    spread = jitter_ms(steps) / float(np.median([each.ms for each in seen[FIT] if each.kind == DECODE]))
    said = list(warnings)
    if spread > NOISY:
        said.append(f"tokens are late by {spread:.0%} of a decode step: the server or this machine is busy")
    if missing := sorted(set(found) - {error.regime for error in errors}):
        said.append(f"no step of {' and '.join(missing)} was held out: their error is not known")
    return Result(_profile(facts, fit, steps, errors, name, hardware, source), fit, errors, spread, tuple(said))


def _noise(seen: Sequence[Observation], regime: str) -> float:
    return float(np.median([100 * each.error_ms / each.ms for each in seen if each.kind == regime]))


def frontend_ms(fit: Fit, steps: Sequence[Step]) -> float:
    """Median of the time to a prompt's first token, less its step."""
    alone = [step for step in steps if step.kind == TTFT]
    if not alone:
        raise InputError("no time to a first token was measured; measure again")
    return max(0.0, float(np.median([step.end_ms for step in alone] - step_times(fit.coefficients_ms, alone))))


def write_profile(profile: StepProfile, path: Path) -> None:
    """Writes a profile as a whole.

    Raises:
      OSError: it cannot be written.
    """
    text = json.dumps(dataclasses.asdict(profile), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _profile(
    facts: Facts,
    fit: Fit,
    steps: Sequence[Step],
    errors: Sequence[RegimeError],
    name: str,
    hardware: str,
    source: str,
) -> StepProfile:
    c = fit.coefficients_ms
    by_regime = "; ".join(
        f"{error.regime} median {error.median_percent:.1f} %, p90 {error.p90_percent:.1f} %" for error in errors
    )
    return StepProfile(
        name=name,
        hardware=hardware,
        model=facts.model,
        engine=facts.engine,
        coefficients_ms={key: _rounded(value) for key, value in c.items()},
        frontend_ms=_rounded(frontend_ms(fit, steps)),
        kv_blocks=facts.kv_blocks,
        block_size=facts.block_size,
        max_num_seqs=facts.max_num_seqs,
        max_num_batched_tokens=facts.max_num_batched_tokens,
        max_model_len=facts.max_model_len,
        grad1=_rounded((c["g"] + TYPICAL_PROMPT * c["f"]) / 1e3),
        grad2=_rounded(1 / (facts.kv_blocks * facts.block_size)),
        provenance={
            "status": "measured",
            "source": source,
            "date": facts.date,
            "error": f"absolute error of held-out step times: {by_regime or 'not measured'}",
        },
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{MEANINGLESS_DIGITS}g}")
