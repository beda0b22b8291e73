"""One picture of a comparison: every request, simulated over live, and the distributions of both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, Locator, LogLocator, MaxNLocator, NullLocator

from jaxroute.live.agreement import QUANTITIES
from jaxroute.plots import BLACK, BLUE, GREY, ORANGE
from jaxroute.results import RunResult

if TYPE_CHECKING:
    from jaxroute.live.fidelity import Comparison

NAMES = {"e2e": "end-to-end latency", "ttft": "time to first token", "tbt": "mean time between tokens"}
UNITS = {"e2e": (1.0, "s"), "ttft": (1.0, "s"), "tbt": (1e3, "ms")}


def fidelity_picture(comparison: Comparison) -> Figure:
    """Two rows of panels, one column for each of E2E, TTFT and TBT.

    Above each request is a point, live against simulated, log scales, on the line where both are equal (one all of
    whose tokens came at once has no place there); below are the shares of requests that are done within a time, the
    simulated one and those of all live runs.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(2, len(QUANTITIES))
    live = [each.run.result for each in comparison.measured]
    for (name, of), (above, below) in zip(QUANTITIES.items(), grid.T, strict=True):
        scale, unit = UNITS[name]
        simulated = of(comparison.simulated) * scale
        measured = [of(each) * scale for each in live]
        _draw_requests(above, simulated, measured)
        error = comparison.differences[0][name].error_percent
        above.set_title(f"{NAMES[name]}\nmean {error['mean']:+.2f} %, p99 {error['p99']:+.2f} %", fontsize="medium")
        above.set(xlabel=f"live ({unit})", ylabel=f"simulated ({unit})")
        _draw_shares(below, simulated, measured)
        below.set(xlabel=f"{NAMES[name]} ({unit})", ylabel="share of requests")
    grid[1, 0].legend(frameon=False, loc="lower right")
    figure.suptitle(f"{comparison.case.name}, {comparison.simulated.policy}: {_sizes(comparison.simulated)}")
    return figure


def _sizes(result: RunResult) -> str:
    return f"{len(result.table):,} requests, {result.instances} instances"


def _draw_requests(axes: Axes, simulated: np.ndarray, measured: list[np.ndarray]) -> None:
    both = np.concatenate([simulated, *measured])
    both = both[both > 0]
    low, high = both.min() / 1.1, both.max() * 1.1
    axes.plot([low, high], [low, high], color=GREY, lw=1, zorder=1)
    for each in measured:
        axes.plot(each, simulated, "o", color=BLUE, ms=3, alpha=0.45, mew=0)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(_locator(low, high))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _tidy(axes)


def _locator(low: float, high: float) -> Locator:
    """Few round numbers on a log axis, however narrow."""
    if high / low < 5:
        return MaxNLocator(5)
    return LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,))


def _draw_shares(axes: Axes, simulated: np.ndarray, measured: list[np.ndarray]) -> None:
    for index, each in enumerate(measured):
        label = None if index else ("live" if len(measured) == 1 else f"live, {len(measured)} runs")
        axes.plot(*_distribution(each), drawstyle="steps-post", color=ORANGE, lw=2.4, alpha=0.8, label=label)
    axes.plot(*_distribution(simulated), drawstyle="steps-post", color=BLACK, lw=1, ls="--", label="simulated")
    axes.set_ylim(0, 1.01)
    axes.set_xlim(left=0)
    _tidy(axes)


def _distribution(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.sort(values[~np.isnan(values)])
    return values, np.arange(1, len(values) + 1) / len(values)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, color="#E4E4E4", lw=0.7)
