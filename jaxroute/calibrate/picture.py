"""A fit -> one picture: simulated against logged times, what is left over time, and the step times."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxroute.calibrate.fit import Fitted, observed_times, times_with_slopes
from jaxroute.calibrate.log import RequestLog
from jaxroute.calibrate.result import Calibration
from jaxroute.plots import BLUE, GREY, ORANGE, label_log_axis, tidy

BEFORE: dict[str, Any] = {
    "color": ORANGE,
    "marker": "x",
    "ms": 4,
    "mew": 0.8,
    "linestyle": "",
    "alpha": 0.6,
    "label": "start",
}
AFTER: dict[str, Any] = {
    "color": BLUE,
    "marker": "o",
    "ms": 3,
    "mew": 0,
    "linestyle": "",
    "alpha": 0.6,
    "label": "fitted",
}


def residual_picture(log: RequestLog, fitted: Fitted, found: Calibration) -> Figure:
    """Four panels: E2E and TTFT simulated against logged (s), error of the E2E over time, step times against the start.

    Args:
      log: all requests whose times are known counted.
      fitted: the fit.
      found: what it comes to.
    """
    figure = Figure(figsize=(10, 8.2), layout="constrained")
    panels = figure.subplots(2, 2)
    observed = observed_times(log)
    runs = [
        times_with_slopes(log, point.simulated, np.asarray([[frontend]]))[0][0]
        for point, frontend in ((fitted.before, fitted.start.frontend_s), (fitted.after, fitted.frontend_s))
    ]
    for axes, place, name in ((panels[0, 0], 1, "E2E"), (panels[0, 1], 0, "TTFT")):
        _scatter(axes, observed[place], [run[place] for run in runs], name)
    _over_time(panels[1, 0], log.dispatch_s, observed[1], [run[1] for run in runs])
    _step_times(panels[1, 1], found)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _scatter(axes: Axes, observed: np.ndarray, runs: list[np.ndarray], name: str) -> None:
    known = np.isfinite(observed)
    if not known.any():
        axes.text(0.5, 0.5, f"no {name} in the log", ha="center", transform=axes.transAxes)
        return
    ends = observed[known].min() * 0.8, observed[known].max() * 1.25
    axes.plot(ends, ends, color=GREY, lw=1.2, zorder=1)
    for run, style in zip(runs, (BEFORE, AFTER), strict=True):
        axes.plot(observed[known], run[known], **style)
    axes.set(xscale="log", yscale="log", xlim=ends, ylabel=f"simulated {name} (s)")
    label_log_axis(axes)
    axes.yaxis.set_major_formatter("{x:g}")
    tidy(axes, xlabel=f"logged {name} (s)")


def _over_time(axes: Axes, dispatch_s: np.ndarray, observed: np.ndarray, runs: list[np.ndarray]) -> None:
    known = np.isfinite(observed)
    axes.axhline(0, color=GREY, lw=1.2, zorder=1)
    for run, style in zip(runs, (BEFORE, AFTER), strict=True):
        axes.plot(dispatch_s[known], 100 * (run[known] / observed[known] - 1), **style)
    errors = np.concatenate([100 * (run[known] / observed[known] - 1) for run in runs])
    low, high = np.quantile(errors, [0.005, 0.995])
    margin = 0.08 * max(high - low, 1.0)
    axes.set(ylim=(min(low, 0) - margin, max(high, 0) + margin), ylabel="error of the E2E (%)")
    tidy(axes, xlabel="dispatch (s)")


def _step_times(axes: Axes, found: Calibration) -> None:
    rows = np.arange(len(found.step_times))[::-1]
    axes.axvline(0, color=ORANGE, lw=1.6, zorder=1)
    for row, step in zip(rows, found.step_times, strict=True):
        value, low, high = (
            100 * (each / step.start_ms - 1) for each in (step.fitted_ms.value, step.fitted_ms.low, step.fitted_ms.high)
        )
        axes.plot([low, high], [row, row], color=BLUE, lw=1.8)
        axes.plot([value], [row], "o", color=BLUE, ms=5)
    axes.set_yticks(rows, [step.label for step in found.step_times], fontsize="small")
    tidy(axes, xlabel="step time against the start (%), 95 % interval")
    axes.grid(False, axis="y")
