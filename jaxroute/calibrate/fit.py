"""Coefficients whose simulated times are those of a log: damped Gauss-Newton or Adam through the simulator.

Unknowns are the logarithms of the nine coefficients and the front end's constant. The residuals are log(simulated /
logged) of TTFT, E2E and mean TBT, each in units of its own robust spread, under Huber's loss: a request whose place in
the order of events is not the log's must not pull. A normal prior around the start holds what the log says nothing
about. Derivatives are the anchored ones of `jaxroute.cluster.replay`. Times jump where events change places, and no
derivative sees it: hence several starts, and steps that are taken only where the loss itself falls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxroute.calibrate.log import RequestLog
from jaxroute.calibrate.model import ServerModel, Simulated
from jaxroute.profiles import COEFFICIENTS, StepProfile

UNKNOWNS = (*COEFFICIENTS, "frontend")
QUANTITIES = ("ttft", "e2e", "tbt")

PRIOR_SPREAD = 0.35
"""Standard deviation of the prior, in logarithms: the start is taken to be right to within about this share."""

FRONTEND_SPREAD_S = 0.01
BOUND = float(np.log(5))
"""Coefficients stay within this factor of the start."""

MOST_FRONTEND_S = 0.2
SMALLEST_SHARE = 0.005
"""A coefficient that is 0 in the start begins where it adds this share to a typical step."""

SMALLEST_SPREAD = 2e-3
"""No residual is believed to be more exact than this (logarithm: 0.2 %)."""

HUBER = 1.5
TYPICAL_WORK = {"W": 1.0, "h": 1.0, "g": 500.0, "d": 8e3, "e": 16.0, "f": 2.5e5, "x": 2.5e5, "u": 1.0, "v": 1.0}
"""What each coefficient is multiplied with in a middling step."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a fit begins and what holds it there.

    Attributes:
      base_s: [9] coefficients of which the logarithms are counted from, seconds.
      frontend_s: the front end's constant.
    """

    base_s: np.ndarray
    frontend_s: float

    @classmethod
    def of(cls, profile: StepProfile) -> Start:
        """The profile's; coefficients that are 0 there, small ones."""
        values = np.asarray([profile.coefficients_ms[name] for name in COEFFICIENTS]) / 1e3
        step = profile.step_ms([], [512] * 16) / 1e3
        least = SMALLEST_SHARE * step / np.asarray([TYPICAL_WORK[name] for name in COEFFICIENTS])
        return cls(np.maximum(values, least), profile.frontend_ms / 1e3)


@dataclasses.dataclass(frozen=True)
class Point:
    """A batch of A points of the search, and all that is known of them.

    Attributes:
      unknowns: [A, 10] logarithms against the start, and the front end's constant less that of the start, seconds.
      residuals: [A, 3, N] log(simulated / logged); 0 where nothing was logged.
      slopes: [A, 3, N, 10] derivatives of those in the unknowns.
      simulated: the times.
    """

    unknowns: np.ndarray
    residuals: np.ndarray
    slopes: np.ndarray
    simulated: Simulated


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The end of a fit.

    Attributes:
      start: where it began.
      before, after: the start, and the best end, each a batch of one.
      spread: [3] robust spread of the residuals of each quantity at the end.
      losses: [A] of all ends.
      ends: [A, 10] all ends.
      history: loss of the best start by iteration.
      evaluations: times that the simulator was run with its derivatives, all starts at once.
    """

    start: Start
    before: Point
    after: Point
    spread: np.ndarray
    losses: np.ndarray
    ends: np.ndarray
    history: tuple[float, ...]
    evaluations: int

    @property
    def coefficients_s(self) -> np.ndarray:
        """[9] seconds."""
        return self.start.base_s * np.exp(self.after.unknowns[0, :-1])

    @property
    def frontend_s(self) -> float:
        """The front end's constant."""
        return self.start.frontend_s + float(self.after.unknowns[0, -1])


Progress = Callable[[int, int], None]


class Fitting:
    """A log, a model of its servers, and what the fit starts from: evaluates points and their losses."""

    def __init__(self, model: ServerModel, start: Start, *, fit_frontend: bool) -> None:
        self.model, self.start, self.fit_frontend = model, start, fit_frontend
        self.observed = observed_times(model.log)
        self.evaluations = 0

    def evaluate(self, unknowns: np.ndarray) -> Point:
        """Simulates [A, 10] unknowns."""
        self.evaluations += 1
        simulated = self.model(self.start.base_s * np.exp(unknowns[:, :-1]))
        frontend = (self.start.frontend_s + unknowns[:, -1])[:, None]
        values, slopes = times_with_slopes(self.model.log, simulated, frontend)
        known = np.isfinite(self.observed)
        residuals = np.where(known, np.log(values / np.where(known, self.observed, 1)), 0)
        slopes = np.where(known[..., None], slopes / values[..., None], 0)
        if not self.fit_frontend:
            slopes[..., -1] = 0
        return Point(unknowns, residuals, slopes, simulated)

    def spread(self, residuals: np.ndarray) -> np.ndarray:
        """[A, 3] robust spread of [A, 3, N] residuals around 0."""
        known = np.isfinite(self.observed)
        found = np.stack(
            [
                np.median(np.abs(residuals[:, q, known[q]]), axis=-1) if known[q].any() else np.zeros(len(residuals))
                for q in range(3)
            ],
            axis=1,
        )
        return np.maximum(1.4826 * found, SMALLEST_SPREAD)

    @property
    def precision(self) -> np.ndarray:
        """[10] of the prior."""
        return np.asarray([PRIOR_SPREAD**-2] * len(COEFFICIENTS) + [FRONTEND_SPREAD_S**-2])

    def loss(self, point: Point, spread: np.ndarray) -> np.ndarray:
        """[A] Huber's loss of the residuals in units of `spread` ([3]), and the prior's."""
        size = np.abs(point.residuals) / spread[:, None]
        huber = np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))
        return huber.sum((1, 2)) + (self.precision * point.unknowns**2).sum(-1) / 2

    def gradient(self, point: Point, spread: np.ndarray) -> np.ndarray:
        """[A, 10] derivative of the loss."""
        pull = np.clip(point.residuals / spread[:, None], -HUBER, HUBER) / spread[:, None]
        return np.einsum("aqn,aqnk->ak", pull, point.slopes) + self.precision * point.unknowns

    def curvature(self, point: Point, spread: np.ndarray) -> np.ndarray:
        """[A, 10, 10] Gauss-Newton Hessian of the loss."""
        size = np.abs(point.residuals) / spread[:, None]
        weight = np.where(size <= HUBER, 1, HUBER / np.maximum(size, HUBER)) / spread[:, None] ** 2
        found = np.einsum("aqnk,aqn,aqnl->akl", point.slopes, weight, point.slopes)
        return found + np.diag(self.precision)

    def clip(self, unknowns: np.ndarray) -> np.ndarray:
        """The unknowns within their bounds."""
        low = np.asarray([-BOUND] * len(COEFFICIENTS) + [-self.start.frontend_s])
        high = np.asarray([BOUND] * len(COEFFICIENTS) + [MOST_FRONTEND_S - self.start.frontend_s])
        return np.clip(unknowns, low, high)


def starts_of(count: int, seed: int, spread: float = 0.15) -> np.ndarray:
    """[A, 10] unknowns to start from: the profile itself, and others around it."""
    rng = np.random.default_rng(seed)
    starts = np.zeros((count, len(UNKNOWNS)))
    # What all coefficients share is the speed of the machine, which is the likeliest thing to be wrong.
    starts[1:, :-1] = spread * (
        rng.standard_normal((count - 1, 1)) + rng.standard_normal((count - 1, len(COEFFICIENTS)))
    )
    return starts


def gauss_newton(fitting: Fitting, starts: np.ndarray, *, iterations: int, progress: Progress | None = None) -> Fitted:
    """Levenberg and Marquardt's method from [A, 10] starts side by side.

    The spread that residuals are measured in shrinks with them: far off, all requests pull alike.
    """
    point = fitting.evaluate(fitting.clip(starts))
    before = fitting.evaluate(np.zeros((1, len(UNKNOWNS))))
    spread = fitting.spread(point.residuals).min(0)
    damping = np.full(len(starts), 1e-2)
    best = fitting.loss(point, spread)
    history = [float(best.min())]
    for iteration in range(iterations):
        gradient, curvature = fitting.gradient(point, spread), fitting.curvature(point, spread)
        scaled = curvature + damping[:, None, None] * np.einsum("akk->ak", curvature)[:, None, :] * np.eye(
            len(UNKNOWNS)
        )
        step = -np.linalg.solve(scaled, gradient[..., None])[..., 0]
        tried = fitting.evaluate(fitting.clip(point.unknowns + step))
        better = fitting.loss(tried, spread) < best
        point = _chosen(better, tried, point)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-6, 1e6)
        spread = np.minimum(spread, fitting.spread(point.residuals).min(0))
        best = fitting.loss(point, spread)
        history.append(float(best.min()))
        if progress is not None:
            progress(iteration + 1, iterations)
        if (damping > 1e3).all():
            break
    return _fitted(fitting, before, point, spread, history)


def adam(
    fitting: Fitting, starts: np.ndarray, *, iterations: int, rate: float = 0.03, progress: Progress | None = None
) -> Fitted:
    """Adam on the same loss, from the same starts; the best point that each has seen counts."""
    point = fitting.evaluate(fitting.clip(starts))
    before = fitting.evaluate(np.zeros((1, len(UNKNOWNS))))
    spread = fitting.spread(point.residuals).min(0)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, iterations))
    # The front end's constant is in seconds; the others are logarithms.
    unit = np.asarray([1.0] * len(COEFFICIENTS) + [FRONTEND_SPREAD_S / PRIOR_SPREAD])
    state = optimiser.init(jnp.asarray(point.unknowns / unit))
    best_point, history = point, [float(fitting.loss(point, spread).min())]
    for iteration in range(iterations):
        gradient = fitting.gradient(point, spread) * unit
        # Optax mixes float and int scalars.
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimiser.update(jnp.asarray(gradient), state)
        point = fitting.evaluate(fitting.clip(point.unknowns + np.asarray(change, np.float64) * unit))
        spread = np.minimum(spread, fitting.spread(point.residuals).min(0))
        better = fitting.loss(point, spread) < fitting.loss(best_point, spread)
        best_point = _chosen(better, point, best_point)
        history.append(float(fitting.loss(best_point, spread).min()))
        if progress is not None:
            progress(iteration + 1, iterations)
    return _fitted(fitting, before, best_point, spread, history)


def observed_times(log: RequestLog) -> np.ndarray:
    """[3, N] TTFT, E2E and mean TBT, seconds; NaN where there is none, or it does not count."""
    several = log.output_tokens > 1
    tbt = np.where(several, (log.e2e_s - log.ttft_s) / np.maximum(log.output_tokens - 1, 1), np.nan)
    found = np.stack([log.ttft_s, np.where(several | np.isnan(log.ttft_s), log.e2e_s, np.nan), tbt])
    return np.where(log.counted & (found > 0), found, np.nan)


def times_with_slopes(log: RequestLog, simulated: Simulated, frontend_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[A, 3, N] TTFT, E2E and mean TBT, and their derivatives in the unknowns, [A, 3, N, 10].

    Args:
      log: the requests.
      simulated: of A points.
      frontend_s: [A, 1].
    """
    ttft, e2e = simulated.ttft_s + frontend_s, simulated.e2e_s + frontend_s
    gaps = np.maximum(log.output_tokens - 1, 1)
    times = np.stack([ttft, e2e, np.where(log.output_tokens > 1, (e2e - ttft) / gaps, 1)], axis=1)
    tbt_slope = (simulated.e2e_slope - simulated.ttft_slope) / gaps[:, None]
    slopes = np.stack([simulated.ttft_slope, simulated.e2e_slope, tbt_slope], axis=1)
    of_frontend = np.broadcast_to(np.asarray([1.0, 1.0, 0.0])[None, :, None, None], (*slopes.shape[:-1], 1))
    return times, np.concatenate([slopes, of_frontend], axis=-1)


def _chosen(better: np.ndarray, one: Point, other: Point) -> Point:
    def pick(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    simulated = Simulated(**{k: pick(v, getattr(other.simulated, k)) for k, v in vars(one.simulated).items()})
    own = {name: pick(getattr(one, name), getattr(other, name)) for name in ("unknowns", "residuals", "slopes")}
    return Point(simulated=simulated, **own)


def _fitted(fitting: Fitting, before: Point, point: Point, spread: np.ndarray, history: list[float]) -> Fitted:
    losses = fitting.loss(point, spread)
    best = int(losses.argmin())
    simulated = Simulated(**{k: v[best : best + 1] for k, v in vars(point.simulated).items()})
    after = Point(
        simulated=simulated,
        **{name: getattr(point, name)[best : best + 1] for name in ("unknowns", "residuals", "slopes")},
    )
    return Fitted(
        start=fitting.start,
        before=before,
        after=after,
        spread=fitting.spread(after.residuals)[0],
        losses=losses,
        ends=point.unknowns,
        history=tuple(history),
        evaluations=fitting.evaluations,
    )
