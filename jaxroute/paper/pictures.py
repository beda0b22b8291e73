"""Pictures that several parts draw, in the style of `jaxroute.plots`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxroute.paired import Interval
from jaxroute.plots import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, tidy


@dataclasses.dataclass(frozen=True)
class Dot:
    """A number of ours and the paper's, for one line of a panel."""

    name: str
    value: Interval
    printed: float | None = None


def dots(panels: Sequence[tuple[str, Sequence[Dot]]], label: str, *, zero: bool = True) -> Figure:
    """Panels side by side, a line for each policy: ours with its interval, and the paper's as a hollow diamond.

    Args:
      panels: title and lines; the names are those of the first panel.
      label: of the x axis.
      zero: whether a line at 0 is drawn.
    """
    rows = max(len(lines) for _, lines in panels)
    figure = Figure(figsize=(3.2 + 3.1 * len(panels), 1.5 + 0.36 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, lines) in zip(grid, panels, strict=True):
        _draw_dots(axes, lines)
        if zero:
            axes.axvline(0, color=GREY, lw=1.2, zorder=1)
        axes.set_title(title, fontsize="medium")
        tidy(axes, xlabel=label)
        axes.grid(False, axis="y")
    grid[0].set_yticks(range(rows), [line.name for line in panels[0][1]])
    grid[0].set_ylim(rows - 0.4, -0.6)
    handles = [
        Line2D([], [], color=BLUE, marker="o", ms=6, lw=1.8, label="simulated, 95 % interval"),
        Line2D([], [], linestyle="", marker="D", ms=6, mfc="white", mec=VERMILLION, label="printed in the paper"),
    ]
    has_printed = any(line.printed is not None for _, lines in panels for line in lines)
    figure.legend(handles=handles[: 1 + has_printed], loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_dots(axes: Axes, lines: Sequence[Dot]) -> None:
    for row, line in enumerate(lines):
        if not np.isnan(line.value.low):
            axes.hlines(row, line.value.low, line.value.high, color=BLUE, lw=1.8)
        axes.plot(line.value.value, row, "o", color=BLUE, ms=6)
        if line.printed is not None:
            axes.plot(line.printed, row, "D", ms=6, mfc="none", mec=VERMILLION, mew=1.4)


def latency_bars(lines: Sequence[tuple[str, tuple[float, float, float]]]) -> Figure:
    """Where the mean E2E latency of each policy is spent: at the router, in an instance's queue, in service."""
    figure = Figure(figsize=(8.6, 1.3 + 0.36 * len(lines)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(lines))
    kinds = (("held at the router", VERMILLION), ("waiting at the instance", ORANGE), ("in service", SKY))
    for kind, (label, colour) in enumerate(kinds):
        width = np.asarray([parts[kind] for _, parts in lines])
        axes.barh(np.arange(len(lines)), width, left=left, height=0.62, color=colour, label=label)
        left += width
    for row, total in enumerate(left):
        axes.annotate(f"{total:.1f}", (total, row), (5, 0), textcoords="offset points", va="center", color=BLACK)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * left.max())
    tidy(axes, xlabel="mean end-to-end latency (s)")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure
