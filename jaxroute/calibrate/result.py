"""A finished fit -> a profile, how sure one can be of it, and how far it is from the log before and after."""

from __future__ import annotations

import dataclasses
import datetime

import numpy as np

from jaxroute.calibrate.fit import QUANTITIES, UNKNOWNS, Fitted, Fitting, Point, observed_times, times_with_slopes
from jaxroute.calibrate.log import RequestLog
from jaxroute.profiles import COEFFICIENTS, StepProfile

BLOCKS = 25
"""Runs of neighbouring requests that count as one observation each: requests of one batch share their steps."""

Z95 = 1.96
TYPICAL_PROMPT = 1024
DIGITS = 6

GridStep = tuple[str, list[tuple[int, int]], list[int]]
"""Label, prefills and decode contexts of an engine step, as `StepProfile.step_ms` takes them."""

HOLD_OUT = 5
"""One request in so many is not fitted, only judged by."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Coefficient:
    """One of the unknowns, milliseconds.

    Attributes:
      name: of it.
      start_ms: where the fit began.
      fitted_ms: where it ended, with an interval.
      from_log: share of what is known of it that comes from the log and not from the start, 0 to 1.
    """

    name: str
    start_ms: float
    fitted_ms: Interval
    from_log: float


@dataclasses.dataclass(frozen=True)
class StepTime:
    """An engine step, and how long it takes by both profiles, milliseconds.

    Attributes:
      label: what runs in it.
      start_ms: by the start.
      fitted_ms: by the fit, with an interval.
    """

    label: str
    start_ms: float
    fitted_ms: Interval


@dataclasses.dataclass(frozen=True)
class Error:
    """How far simulated times are from those of the requests that were held out, in %.

    Attributes:
      mean: of the mean over requests.
      each: mean absolute error of a request, over the mean.
      median: median absolute error of a request, relative to itself.
    """

    mean: float
    each: float
    median: float


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a fit comes to.

    Attributes:
      profile: fitted.
      coefficients: one for each of `UNKNOWNS`.
      step_times: over a grid of steps that may have run.
      before, after: errors by quantity.
      requests, held_out: that were fitted, and judged by.
      preemptions: in the simulation, at the end.
    """

    profile: StepProfile
    coefficients: tuple[Coefficient, ...]
    step_times: tuple[StepTime, ...]
    before: dict[str, Error]
    after: dict[str, Error]
    requests: int
    held_out: int
    preemptions: int


def split(log: RequestLog) -> tuple[RequestLog, RequestLog]:
    """The log to fit and the log to judge by: the same requests, of which other ones count."""
    held = np.arange(len(log)) % HOLD_OUT == HOLD_OUT - 1
    return (
        dataclasses.replace(log, counted=log.counted & ~held),
        dataclasses.replace(log, counted=log.counted & held),
    )


def calibration(fitting: Fitting, fitted: Fitted, judged: RequestLog, start: StepProfile, *, name: str) -> Calibration:
    """Sums a fit up.

    Args:
      fitting, fitted: the fit.
      judged: the same log, with the held-out requests counted.
      start: the profile that it began at.
      name: of the new one.
    """
    covariance = _covariance(fitting, fitted)
    before = _errors(judged, fitted.before, fitted.start.frontend_s)
    after = _errors(judged, fitted.after, fitted.frontend_s)
    counted = int(fitting.model.log.counted.sum())
    source = f"jaxroute calibrate {judged.name} ({counted} requests) from {start.name}"
    error = "; ".join(f"{q} mean {after[q].mean:+.1f} %, each {after[q].each:.1f} %" for q in QUANTITIES if q in after)
    coefficients = dict(zip(COEFFICIENTS, (_rounded(1e3 * each) for each in fitted.coefficients_s), strict=True))
    profile = dataclasses.replace(
        start,
        name=name,
        coefficients_ms=coefficients,
        frontend_ms=_rounded(1e3 * max(fitted.frontend_s, 0.0)),
        grad1=_rounded((coefficients["g"] + TYPICAL_PROMPT * coefficients["f"]) / 1e3),
        provenance={
            "status": "fitted",
            "source": source,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "error": f"of requests held out: {error}",
        },
    )
    return Calibration(
        profile=profile,
        coefficients=_coefficients(fitting, fitted, start, covariance),
        step_times=_step_times(fitted, start, covariance, seen_in(judged, grid(start))),
        before=before,
        after=after,
        requests=counted,
        held_out=int(judged.counted.sum()),
        preemptions=int(fitted.after.simulated.preemptions[0]),
    )


def grid(profile: StepProfile) -> list[GridStep]:
    """The engine steps that a profile is judged by, those that its limits allow."""
    prompts: list[GridStep] = [(f"prefill {p:,}", [(p, 0)], []) for p in (32, 128, 512, 2048)]
    decodes: list[GridStep] = [(f"decode {n} x {c:,}", [], [c] * n) for n in (1, 4, 16, 64) for c in (256, 1024)]
    mixed: list[GridStep] = [(f"prefill {p} + decode 8 x 512", [(p, 0)], [512] * 8) for p in (128, 512)]
    return [
        (label, prefills, contexts)
        for label, prefills, contexts in (*decodes, *prompts, *mixed)
        if len(contexts) + len(prefills) <= profile.max_num_seqs
        and sum(p for p, _ in prefills) + len(contexts) <= profile.max_num_batched_tokens
        and sum(p for p, _ in prefills) + sum(contexts) <= profile.kv_tokens
    ]


def seen_in(log: RequestLog, steps: list[GridStep]) -> list[GridStep]:
    """Those of the steps that may have run: no longer prompts, and no more sequences, than the log has at once."""
    longest = int((log.prompt_tokens + log.output_tokens).max())
    most = 0
    for server in range(len(log.servers)):
        own = (log.server == server) & np.isfinite(log.e2e_s)
        times = np.concatenate([log.dispatch_s[own], (log.dispatch_s + log.e2e_s - log.waited_s)[own]])
        changes = np.repeat([1, -1], int(own.sum()))
        most = max(most, int(np.cumsum(changes[np.argsort(times, kind="stable")]).max(initial=0)))
    return [
        (label, prefills, contexts)
        for label, prefills, contexts in steps
        if len(contexts) <= most and max([p for p, _ in prefills] + contexts) <= longest
    ]


def _covariance(fitting: Fitting, fitted: Fitted) -> np.ndarray:
    """[10, 10] of the unknowns: the Hessian around the scatter of blocks of requests, prior included."""
    point, spread = fitted.after, fitted.spread
    inverse = np.linalg.inv(fitting.curvature(point, spread)[0])
    pull = np.clip(point.residuals[0] / spread[:, None], -1.5, 1.5) / spread[:, None]
    scores = np.einsum("qn,qnk->nk", pull, point.slopes[0])
    blocks = np.arange(len(scores)) * BLOCKS // max(len(scores), 1)
    sums = np.stack([scores[blocks == block].sum(0) for block in np.unique(blocks)])
    sums = sums - sums.mean(0)
    middle = len(sums) / max(len(sums) - 1, 1) * sums.T @ sums + np.diag(fitting.precision)
    return inverse @ middle @ inverse


def _coefficients(
    fitting: Fitting, fitted: Fitted, start: StepProfile, covariance: np.ndarray
) -> tuple[Coefficient, ...]:
    deviation = np.sqrt(np.diag(covariance))
    from_log = np.clip(1 - np.diag(covariance) * fitting.precision, 0, 1)
    found = []
    for place, name in enumerate(COEFFICIENTS):
        value = 1e3 * fitted.coefficients_s[place]
        reach = np.exp(Z95 * deviation[place])
        interval = Interval(value, value / reach, value * reach)
        found.append(Coefficient(name, start.coefficients_ms[name], interval, float(from_log[place])))
    value, reach = 1e3 * fitted.frontend_s, 1e3 * Z95 * deviation[-1]
    interval = Interval(value, max(0.0, value - reach), value + reach)
    found.append(Coefficient(UNKNOWNS[-1], start.frontend_ms, interval, float(from_log[-1]) * fitting.fit_frontend))
    return tuple(found)


def _step_times(
    fitted: Fitted, start: StepProfile, covariance: np.ndarray, steps: list[GridStep]
) -> tuple[StepTime, ...]:
    values = 1e3 * fitted.coefficients_s
    profile = dataclasses.replace(start, coefficients_ms=dict(zip(COEFFICIENTS, values.tolist(), strict=True)))
    found = []
    for label, prefills, contexts in steps:
        slope = values * _features(profile, prefills, contexts)
        time = profile.step_ms(prefills, contexts)
        deviation = float(np.sqrt(slope @ covariance[:-1, :-1] @ slope)) / time
        reach = np.exp(Z95 * deviation)
        found.append(StepTime(label, start.step_ms(prefills, contexts), Interval(time, time / reach, time * reach)))
    return tuple(found)


def _features(profile: StepProfile, prefills: list[tuple[int, int]], contexts: list[int]) -> np.ndarray:
    """[9] what each coefficient is multiplied with in a step."""
    c, p, n = profile.coefficients_ms, sum(new for new, _ in prefills), len(contexts)
    flat = c["h"] + c["g"] * (p + n) <= c["W"]
    by_name = {
        "W": float(flat),
        "h": float(not flat),
        "g": (p + n) * float(not flat),
        "d": float(sum(contexts)),
        "e": float(n),
        "f": float(sum(new**2 for new, _ in prefills)),
        "x": float(sum(new * kept for new, kept in prefills)),
        "u": float(p > 0),
        "v": float(n > 0),
    }
    return np.asarray([by_name[name] for name in COEFFICIENTS])


def _errors(judged: RequestLog, point: Point, frontend_s: float) -> dict[str, Error]:
    observed = observed_times(judged)
    times = times_with_slopes(judged, point.simulated, np.asarray([[frontend_s]]))[0][0]
    found = {}
    for place, name in enumerate(QUANTITIES):
        known = np.isfinite(observed[place])
        if known.any():
            seen, made = observed[place, known], times[place, known]
            found[name] = Error(
                mean=100 * float(made.mean() / seen.mean() - 1),
                each=100 * float(np.abs(made - seen).mean() / seen.mean()),
                median=100 * float(np.median(np.abs(made / seen - 1))),
            )
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
