"""The leaderboard's pictures, in the style of `jaxroute.plots`."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from jaxroute.leaderboard.grid import SmallCase
from jaxroute.leaderboard.standings import Board, CellStandings, Place
from jaxroute.metrics import REFERENCE_POLICY
from jaxroute.plots import BLACK, BLUE, GREY, SKY, VERMILLION, label_log_axis, policy_line_style, tidy

BETTER_TO_WORSE = LinearSegmentedColormap.from_list("better-to-worse", [BLUE, "#F7F7F7", VERMILLION])
FULL_COLOUR_PERCENT = 30.0
"""Change at which a field of the standings has its full colour."""

MOST_LINES = 6
"""Policies that are drawn as lines, the best ones; more cannot be told apart."""

MOST_COLUMNS = 4

DARK_TEXT, LIGHT_TEXT = "#111111", "#FFFFFF"
GRID_COLOUR = "#E4E4E4"


def svg(figure: Figure) -> str:
    """The picture as an inline SVG that takes the page's text colour, so that it can be read on light and on dark."""
    buffer = io.StringIO()
    # Text stays text, and the same picture gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "jaxroute", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for name in (BLACK, GRID_COLOUR):
        text = text.replace(name.lower(), "currentColor" if name == BLACK else "#80808050")
    # Matplotlib leaves black fills out, which then are black whatever the page's colour.
    return text.replace("<svg ", '<svg fill="currentColor" ', 1)


def standings(board: Board) -> Figure:
    """Change of the mean E2E against round robin, %, policy by cell, a panel for each workload: blue is better.

    The best policy over all cells is on top.
    """
    names = list(board.overall)
    panels = _by_workload(board.cells)
    widest = max(map(len, panels.values()))
    size = (2.6 + 0.55 * max(widest, 6), 0.6 + len(panels) * (1.5 + 0.25 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (workload, cells) in zip(grid, panels.items(), strict=True):
        lines = _draw_standings(axes, cells, names)
        axes.set_title(workload, loc="left", fontweight="bold", fontsize="medium", pad=8 + 10 * lines)
    return figure


def _draw_standings(axes: Axes, cells: Sequence[CellStandings], names: Sequence[str]) -> int:
    """One panel; returns the lines of text above its columns."""
    changes = np.asarray(
        [[cell.policies[name].comparison.against_reference["e2e_mean_s"].value for cell in cells] for name in names]
    )
    axes.imshow(np.clip(changes / FULL_COLOUR_PERCENT, -1, 1), cmap=BETTER_TO_WORSE, vmin=-1, vmax=1, aspect="auto")
    for row, column in np.ndindex(changes.shape):
        value = float(changes[row, column])
        colour = LIGHT_TEXT if value < -0.75 * FULL_COLOUR_PERCENT else DARK_TEXT
        axes.text(column, row, _short_percent(value), ha="center", va="center", color=colour, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(cells)), [f"{cell.load:g}" for cell in cells])
    axes.set_xlabel("load")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _name_blocks(axes, cells)


def goodput(board: Board) -> Figure:
    """Share of the requests within the objective over load, a panel for each block, the best policies."""
    return _over_load(board, "share within the objective", _goodput_of, share=True)


def distance(board: Board) -> Figure:
    """Mean E2E over load with what no router can go below (shaded), a panel for each block, the best policies."""
    figure = _over_load(board, "mean E2E (s)", _e2e_of, share=False)
    for axes, own in zip(figure.axes, _by_block(board.cells).values(), strict=True):
        loads, bound = [cell.load for cell in own], [cell.bound_s for cell in own]
        least = min(bound)
        low = least / 1.6
        axes.fill_between(loads, low, bound, color=GREY, alpha=0.35, lw=0, zorder=0)
        axes.plot(loads, bound, color=GREY, lw=1.2, marker="_", ms=12, zorder=1)
        axes.set_yscale("log")
        axes.set_ylim(bottom=low)
        _label_log_y(axes)
        axes.text(0.02, 0.03, "no router gets here", transform=axes.transAxes, fontsize="small", color=BLACK)
    return figure


def small(cases: Sequence[SmallCase], names: Sequence[str]) -> Figure:
    """How far each policy is above the best schedule found, %, a dot for each small case; the bar is the mean."""
    changes = np.asarray([[100 * (case.policies[name] / case.found_s - 1) for case in cases] for name in names])
    order = np.argsort(changes.mean(axis=1))[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.27 * len(names)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(names))
    axes.barh(rows, changes[order].mean(axis=1), height=0.62, color=SKY, lw=0)
    for row, own in zip(rows, changes[order], strict=True):
        axes.plot(own, np.full(len(own), row), "o", ms=3.5, color=BLACK, mew=0)
    axes.set_yticks(rows, [names[index] for index in order])
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0 %"))
    tidy(axes, xlabel="mean E2E above the best schedule found")
    axes.grid(False, axis="y")
    axes.set_xlim(left=0)
    return figure


def _over_load(board: Board, label: str, value_of: object, *, share: bool) -> Figure:
    blocks = _by_block(board.cells)
    names = _drawn(board)
    # A row for each workload, unless it has too many blocks for one.
    columns = min(MOST_COLUMNS, max(Counter(workload for workload, _, _ in blocks).values()))
    columns = columns if len(blocks) > columns > 1 else min(MOST_COLUMNS, len(blocks))
    rows = -(-len(blocks) // columns)
    figure = Figure(figsize=(2.6 + 3.2 * columns, 0.6 + 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (place, own) in zip(grid.flat, blocks.items(), strict=False):
        loads = [cell.load for cell in own]
        for index, name in enumerate(names):
            style = policy_line_style(index)
            values = [value_of(cell, name) for cell in own]  # type: ignore[operator]
            axes.plot(loads, values, marker="o", ms=4, lw=1.6, label=name, **style)
        axes.set_title("\n".join([f"{place[0]}, {place[2]}", place[1].replace("+", "\n+")]), fontsize="small")
        axes.set_xticks(loads, [f"{load:g}" for load in loads])
        tidy(axes, xlabel="load")
        if share:
            axes.set_ylim(0, 1.02)
            axes.yaxis.set_major_locator(MaxNLocator(5))
    for axes in list(grid.flat)[len(blocks) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, handlelength=2.8)
    return figure


def _drawn(board: Board) -> list[str]:
    """The best policies, and round robin."""
    best = list(board.overall)[:MOST_LINES]
    return best if REFERENCE_POLICY in best else [*best[:-1], REFERENCE_POLICY]


def _goodput_of(cell: CellStandings, name: str) -> float:
    return cell.policies[name].comparison.means["goodput"].value


def _e2e_of(cell: CellStandings, name: str) -> float:
    return cell.policies[name].comparison.means["e2e_mean_s"].value


def _by_block(cells: Sequence[CellStandings]) -> dict[Place, list[CellStandings]]:
    blocks: dict[Place, list[CellStandings]] = {}
    for cell in cells:
        blocks.setdefault(cell.place, []).append(cell)
    return blocks


def _by_workload(cells: Sequence[CellStandings]) -> dict[str, list[CellStandings]]:
    workloads: dict[str, list[CellStandings]] = {}
    for cell in cells:
        workloads.setdefault(cell.workload, []).append(cell)
    return workloads


def _name_blocks(axes: Axes, cells: Sequence[CellStandings]) -> int:
    """Fleet and scheduler above their columns, and lines between them; returns the most lines of text."""
    start = most = 0
    for number, ((_, fleet, scheduler), own) in enumerate(_by_block(cells).items()):
        if number:
            axes.axvline(start - 0.5, color=BLACK, lw=1.2)
        name = "\n".join([fleet.replace("+", "\n+"), scheduler])
        most = max(most, name.count("\n") + 1)
        axes.text(start - 0.45, -0.62, name, ha="left", va="bottom", fontsize=6.5 if len(own) < 4 else 7.5)
        start += len(own)
    return most


def _label_log_y(axes: Axes) -> None:
    """`label_log_axis` for the other axis."""
    twin = Figure().subplots()
    twin.set_xscale("log")
    twin.set_xlim(axes.get_ylim())
    label_log_axis(twin)
    axes.set_yticks(twin.get_xticks(), [label.get_text() for label in twin.get_xticklabels()])
    axes.set_yticks([], minor=True)


def _short_percent(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:+z.{0 if abs(value) >= 10 else 1}f}"
