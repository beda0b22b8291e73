"""Measured steps -> the nine coefficients: a robust relative least-squares fit, and what it cannot tell apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import OptimizeResult, least_squares, nnls

from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS
from jaxroute.profiling.observe import Observation
from jaxroute.profiling.steps import REGIMES, Step, features

MODEL_ERROR = 0.02
"""Relative error of a step time that the form itself is taken to have; beyond it and the clock's, steps count less."""

SOFT = 2.0
"""Multiple of a step's expected error beyond which it counts less and less."""

FEWEST = 20
"""Distinct steps without which nine coefficients are not fitted."""

UNCERTAIN = 0.5
"""Standard error, relative to the coefficient, from which on it counts as not identified."""

ENTANGLED = 0.95
"""Correlation of two coefficients' errors from which on only their combination is known."""

_LINEAR = ("d", "e", "f", "x", "u", "v")
"""Coefficients of the features after the first, in their order."""

Coefficients = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Fit:
    """Coefficients and how well each is known.

    Attributes:
      coefficients_ms: the nine.
      standard_error_ms: of each; infinite where no step depends on it.
      remarks: what the measurements do not tell, a line each.
    """

    coefficients_ms: Coefficients
    standard_error_ms: Coefficients
    remarks: tuple[str, ...]


def step_times(coefficients: Coefficients, steps: Sequence[Step]) -> np.ndarray:
    """[steps] float64, the model's step times, milliseconds."""
    return _times(np.asarray([coefficients[name] for name in COEFFICIENTS]), features(steps))


def fit_coefficients(seen: Sequence[Observation]) -> Fit:
    """Fits the nine coefficients, all >= 0, to the steps' times in relative terms.

    For a given number of tokens N* at which the maximum changes over, everything else is linear: each of some N* is
    solved so (non-negative least squares), and the best of them start a robust fit of all nine at once.

    Args:
      seen: observed steps.

    Raises:
      InputError: too few distinct steps, or none of a regime.
    """
    kinds = {each.kind for each in seen}
    missing = [kind for kind in REGIMES if kind not in kinds]
    if missing or len(seen) < FEWEST:
        what = f"no {' and no '.join(missing)} step" if missing else f"only {len(seen)} distinct steps"
        raise InputError(f"{what} measured, too little for nine coefficients; measure again with --budget full")
    table = features([step for each in seen for step in each.steps])
    measured = np.asarray([each.ms for each in seen])
    sums = np.cumsum([0, *(len(each.steps) for each in seen[:-1])])
    # A clock is off by so many milliseconds, whatever the step takes; the form is off by some of it.
    expected = np.hypot(MODEL_ERROR * measured, [each.error_ms for each in seen])
    scale = _typical_sizes(table, measured)

    def residuals(scaled: np.ndarray) -> np.ndarray:
        return (np.add.reduceat(_times(scaled * scale, table), sums) - measured) / expected

    starts = sorted(
        (_from_knee(knee, table, sums, measured, expected) for knee in _knees(table)), key=lambda pair: pair[0]
    )
    results = [_solved(residuals, start / scale, "soft_l1") for _, start in starts[:4]]
    # From there on, what is far off hardly counts at all: a step that was taken for another, a client that was stopped.
    best = _solved(residuals, min(results, key=lambda result: result.cost).x, "cauchy")
    values = _tidy(best.x * scale, table)
    return _known(values, table, sums, measured, expected)


def _solved(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, loss: str) -> OptimizeResult:
    return least_squares(residuals, np.maximum(start, 0), bounds=(0, np.inf), loss=loss, f_scale=SOFT)


def _times(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    W, h, g, *linear = values
    return np.maximum(W, h + g * table[:, 0]) + table[:, 1:] @ np.asarray(linear)


def _typical_sizes(table: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """[9] a size of each coefficient at which its term would be the whole of a typical step."""
    whole = float(np.median(measured))
    terms = np.concatenate([table[:, :1], table[:, 1:]], axis=1)
    largest = np.maximum(terms.max(axis=0), 1)
    per_feature = measured.max() / largest
    return np.concatenate([[whole, whole], per_feature])


def _knees(table: np.ndarray) -> np.ndarray:
    """Numbers of tokens N* at which h + g*N may overtake W; 0: it always does."""
    distinct = np.unique(table[:, 0])
    return np.concatenate([[0.0], distinct[distinct <= np.quantile(distinct, 0.7)]])


def _from_knee(
    knee: float, table: np.ndarray, sums: np.ndarray, measured: np.ndarray, expected: np.ndarray
) -> tuple[float, np.ndarray]:
    """(Residual, [9] coefficients) of W + g*max(0, N - N*) and the linear terms."""
    beyond = np.maximum(table[:, 0] - knee, 0)
    design = np.add.reduceat(np.column_stack([np.ones(len(table)), beyond, table[:, 1:]]), sums) / expected[:, None]
    size = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    solution, residual = nnls(design / size, measured / expected)
    level, g, *linear = solution / size
    h = max(0.0, level - g * knee)
    return float(residual), np.asarray([level, h, g, *linear])


def _tidy(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """What no step depends on is 0; W is lowered to where it begins to matter, where it never did."""
    seen = np.concatenate([[True, True], (table != 0).any(axis=0)])
    values = np.where(seen, values, 0.0)
    W, h, g = values[:3]
    if h + g * table[:, 0].min() >= W:
        values[0] = h + g
    return values


def _known(values: np.ndarray, table: np.ndarray, sums: np.ndarray, measured: np.ndarray, expected: np.ndarray) -> Fit:
    """The fit with standard errors from its Jacobian, robustly weighted."""
    flat = values[1] + values[2] * table[:, 0] < values[0]
    columns = [flat, ~flat, np.where(flat, 0, table[:, 0]), *table[:, 1:].T]
    residual = (np.add.reduceat(_times(values, table), sums) - measured) / expected
    robust = (1 + (residual / SOFT) ** 2) ** -0.5
    jacobian = np.add.reduceat(np.column_stack(columns), sums) * (robust / expected)[:, None]
    size = np.linalg.norm(jacobian, axis=0)
    seen = size > 0
    normal = (jacobian[:, seen] / size[seen]).T @ (jacobian[:, seen] / size[seen])
    spread = float(np.sum((robust * residual) ** 2)) / max(1, len(measured) - int(seen.sum()))
    covariance = np.linalg.pinv(normal, hermitian=True, rcond=1e-12) * spread
    errors = np.full(len(COEFFICIENTS), np.inf)
    errors[seen] = np.sqrt(np.diag(covariance)) / size[seen]
    return Fit(
        coefficients_ms=dict(zip(COEFFICIENTS, map(float, values), strict=True)),
        standard_error_ms=dict(zip(COEFFICIENTS, map(float, errors), strict=True)),
        remarks=_remarks(values, errors, seen, covariance),
    )


def _remarks(values: np.ndarray, errors: np.ndarray, seen: np.ndarray, covariance: np.ndarray) -> tuple[str, ...]:
    remarks = []
    for name, value, error in zip(COEFFICIENTS, values, errors, strict=True):
        if not np.isfinite(error):
            remarks.append(f"{name} is not identifiable: no measured step depends on it{_why(name)}")
        elif value > 0 and error > UNCERTAIN * value:
            remarks.append(f"{name} = {value:.3g} is uncertain by {error:.2g}")
    names = [name for name, is_seen in zip(COEFFICIENTS, seen, strict=True) if is_seen]
    deviation = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = covariance / np.outer(deviation, deviation)
    for first in range(len(names)):
        for second in range(first):
            if abs(correlation[first, second]) > ENTANGLED:
                sign = "sum" if correlation[first, second] < 0 else "difference"
                remarks.append(f"of {names[second]} and {names[first]} the {sign} is known better than either")
    return tuple(remarks)


def _why(name: str) -> str:
    whys = {
        "W": "; h + g*N exceeds it from the first token on, so that it is set to h + g",
        "x": "; no prompt was computed in several steps, as with whole prompts",
        "h": "; W exceeds h + g*N in every step",
    }
    return whys.get(name, "")


def errors_percent(coefficients: Coefficients, seen: Sequence[Observation]) -> dict[str, np.ndarray]:
    """Absolute relative errors of the model by regime, percent."""
    found: dict[str, list[float]] = {kind: [] for kind in REGIMES}
    for each in seen:
        found[each.kind].append(100 * abs(float(step_times(coefficients, each.steps).sum()) / each.ms - 1))
    return {kind: np.asarray(errors) for kind, errors in found.items()}
