"""Runs -> pictures. Every function returns a matplotlib Figure of its own, so no display and no pyplot state is needed.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; a policy is a colour and a line style, given in
the order of the runs, so the same list of policies looks the same in every picture.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxroute import metrics
from jaxroute.errors import InputError
from jaxroute.output import atomic_path
from jaxroute.results import RunResult, Timeline

if TYPE_CHECKING:
    from jaxroute.evaluation import CellResult

DPI = 150
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, VERMILLION, BLACK, GREY = "#56B4E9", "#D55E00", "#000000", "#8A8A8A"
POLICY_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK)
LINE_STYLES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D")
MAX_POINTS = 2000
MAX_OUTLINED_STEPS = 400
LINEAR_PERCENT = 5.0
"""Changes up to here are drawn about linearly in `relative_latency`."""


@dataclasses.dataclass(frozen=True)
class StepKind:
    """A kind of engine step: how it is called and drawn, and which steps of a timeline are of it ([K] mask)."""

    label: str
    colour: str
    mask: Callable[[Timeline], np.ndarray]


STEP_KINDS = (
    StepKind("prefill only", ORANGE, lambda t: (t.step_prefill_tokens > 0) & (t.step_decode_seqs == 0)),
    StepKind("decode only", SKY, lambda t: t.step_prefill_tokens == 0),
    StepKind("prefill + decode", PURPLE, lambda t: (t.step_prefill_tokens > 0) & (t.step_decode_seqs > 0)),
)


def save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG (150 dpi), whole or not at all.

    Raises:
      OSError: the folder is missing or cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def policy_line_style(index: int) -> dict[str, Any]:
    """Colour and line style of the policy at a place in the list; 28 places look different."""
    colours = len(POLICY_COLOURS)
    return {"color": POLICY_COLOURS[index % colours], "linestyle": LINE_STYLES[index // colours % len(LINE_STYLES)]}


def latency_cdf(results: Sequence[RunResult]) -> Figure:
    """Share of requests answered within a time: E2E and TTFT side by side, one line per policy, log x in seconds."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.08})
    quantities = (("end-to-end latency (s)", metrics.e2e_s), ("time to first token (s)", metrics.ttft_s))
    for axes, (label, quantity) in zip(panels, quantities, strict=True):
        for index, result in enumerate(results):
            seconds, share = distribution(quantity(result))
            axes.plot(seconds, share, drawstyle="steps-post", lw=1.8, label=result.policy, **policy_line_style(index))
        axes.set_xscale("log")
        axes.set_ylim(0, 1.01)
        label_log_axis(axes)
        tidy(axes, xlabel=label)
    panels[0].set_ylabel("share of requests")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, handlelength=2.8)
    return figure


def queue_lengths(result: RunResult) -> Figure:
    """Requests at the router, and running and waiting at each instance, over time in seconds; panels share x.

    Raises:
      InputError: the run has no timeline.
    """
    timeline = timeline_of(result)
    count = result.instances
    figure = Figure(figsize=stack_size(count + 1), layout="constrained")
    router, *panels = figure.subplots(count + 1, 1, sharex=True)
    time_s, queue, running, waiting = thinned(timeline, result.dt_s)
    router.fill_between(time_s, queue, step="post", color=VERMILLION, lw=0, label="held at the router")
    name_panel(router, "router")
    for instance, axes in enumerate(panels):
        total = running[:, instance] + waiting[:, instance]
        axes.fill_between(time_s, running[:, instance], step="post", color=SKY, lw=0, label="running")
        axes.fill_between(time_s, running[:, instance], total, step="post", color=ORANGE, lw=0, label="waiting")
        axes.set_ylim(0, 1.05 * max(1, (running + waiting).max()))
        name_panel(axes, f"instance {instance}")
    router.set_ylim(0, 1.05 * max(1, queue.max()))
    for axes in (router, *panels):
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        tidy(axes)
    panels[-1].set_xlim(time_s[0], time_s[-1])
    panels[-1].set_xlabel("time (s)")
    figure.supylabel("requests", fontsize="medium")
    handles, labels = router.get_legend_handles_labels()
    more_handles, more_labels = panels[0].get_legend_handles_labels()
    figure.legend(handles + more_handles, labels + more_labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def step_timeline(result: RunResult, start_s: float, end_s: float) -> Figure:
    """Every engine step that touches [start_s, end_s): one lane per instance, a bar as wide and as tall as the step.

    The width is the step's place in time (s), the height its duration (ms), so that a tall bar is a TBT spike for all
    that decode at the instance; the colour is what the step ran, and a triangle marks a step that preempted.

    Raises:
      InputError: the run has no timeline, or the window is empty.
    """
    timeline = timeline_of(result)
    if not start_s < end_s:
        raise InputError(f"the window from {start_s} s to {end_s} s is empty: give an end after the start")
    figure = Figure(figsize=stack_size(result.instances), layout="constrained")
    lanes = figure.subplots(result.instances, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    shown = (timeline.step_start_s < end_s) & (timeline.step_start_s + timeline.step_duration_s > start_s)
    dense = np.count_nonzero(shown) > MAX_OUTLINED_STEPS * result.instances
    for instance, axes in enumerate(lanes):
        draw_steps(axes, timeline, shown & (timeline.step_instance == instance), outlined=not dense)
        name_panel(axes, f"instance {instance}")
        tidy(axes)
    longest_ms = 1e3 * timeline.step_duration_s[shown].max(initial=1e-3)
    lanes[0].set(xlim=(start_s, end_s), ylim=(0, 1.25 * longest_ms))
    lanes[0].yaxis.set_major_locator(MaxNLocator(4 if result.instances <= 6 else 2))
    lanes[-1].set_xlabel("time (s)")
    figure.supylabel("step duration (ms)", fontsize="medium")
    handles: list[object] = [Patch(color=kind.colour, label=kind.label) for kind in STEP_KINDS]
    handles.append(Line2D([], [], linestyle="", marker="v", color=BLACK, label="preempts"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def policy_comparison(results: Sequence[RunResult]) -> Figure:
    """Mean and 99th percentile of the E2E latency (s, log x) of each policy, the lowest mean on top."""
    summaries = sorted(map(metrics.summarise, results), key=lambda summary: summary.e2e_mean_s, reverse=True)
    figure = Figure(figsize=(8, 1.3 + 0.3 * len(summaries)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(summaries))
    means = np.array([summary.e2e_mean_s for summary in summaries])
    tails = np.array([summary.e2e_p99_s for summary in summaries])
    axes.hlines(rows, means, tails, color=GREY, lw=1.2, zorder=1)
    axes.plot(means, rows, "o", color=BLUE, ms=7, label="mean")
    axes.plot(tails, rows, "D", color=VERMILLION, ms=6, label="99th percentile")
    for row, mean, tail in zip(rows, means, tails, strict=True):
        for value, offset, side in ((mean, -8, "right"), (tail, 8, "left")):
            text = f"{value:#.3g}".rstrip(".")
            axes.annotate(text, (value, row), (offset, 0), textcoords="offset points", ha=side, va="center")
    low, high = means.min(), max(means.max(), tails.max())
    margin = max(1.2, (high / low) ** 0.15)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    label_log_axis(axes)
    axes.set_yticks(rows, [summary.policy for summary in summaries])
    axes.set_ylim(-0.6, len(summaries) - 0.4)
    tidy(axes, xlabel="end-to-end latency (s)")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def relative_latency(cells: Sequence[CellResult]) -> Figure:
    """Change of the mean E2E against the reference policy over load, with 95 % intervals: a row of panels per workload.

    The y axis (%) is linear around 0 and logarithmic beyond `LINEAR_PERCENT`, so that one policy that is far off leaves
    the others to be told apart.
    """
    panels = list(dict.fromkeys(map(_panel_of, cells)))
    sizes = len({panel[1:] for panel in panels})
    columns = sizes if 1 < sizes <= 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    names = [name for name in cells[0].policies if name != cells[0].reference]
    height = max(0.5 + 3.3 * rows, 0.6 + 0.22 * len(names))
    figure = Figure(figsize=(2.8 + 4.2 * columns, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharey="row", squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        own = sorted((cell for cell in cells if _panel_of(cell) == panel), key=lambda cell: cell.load)
        _draw_changes(axes, own, names)
        plural = "s" if panel[1] > 1 else ""
        routers = f", {panel[2]} routers" if panel[2] > 1 else ""
        axes.set_title(f"{Path(panel[0]).name}, {panel[1]} instance{plural}{routers}", fontsize="medium")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes in grid[:, 0]:
        _label_percent_axis(axes)
        axes.set_ylabel(f"mean E2E against {cells[0].reference}")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, handlelength=2.8)
    return figure


def _panel_of(cell: CellResult) -> tuple[str, int, int]:
    return cell.workload, cell.instances, cell.routers


def _draw_changes(axes: Axes, cells: Sequence[CellResult], names: Sequence[str]) -> None:
    """One panel: a line over load for each policy, side by side so that intervals do not cover each other."""
    loads = np.asarray([cell.load for cell in cells])
    spread = 0.6 * min(np.diff(loads), default=0.5)
    axes.axhline(0, color=GREY, lw=1.2, zorder=1)
    for index, name in enumerate(names):
        changes = [cell.policies[name].against_reference["e2e_mean_s"] for cell in cells]
        x = loads + spread * ((index + 0.5) / len(names) - 0.5)
        style = policy_line_style(index)
        # Where there is one load only, there is no line whose style would tell.
        marker = MARKERS[index // len(POLICY_COLOURS) % len(MARKERS)]
        axes.plot(x, [change.value for change in changes], marker=marker, ms=4.5, lw=1.4, label=name, **style)
        low, high = np.asarray([(change.low, change.high) for change in changes]).T
        known = ~np.isnan(low)
        axes.vlines(x[known], low[known], high[known], color=style["color"], lw=1.6)
    axes.set_yscale("asinh", linear_width=LINEAR_PERCENT)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.set_xlim(loads[0] - 0.7 * spread, loads[-1] + 0.7 * spread)
    tidy(axes, xlabel="load")
    axes.grid(False, axis="x")


def _label_percent_axis(axes: Axes) -> None:
    """Round percentages that keep clear of each other, the roundest first, on an axis with zero in it."""
    transform = axes.yaxis.get_transform()
    low, high = axes.get_ylim()
    gap = 0.07 * np.ptp(transform.transform(np.asarray([low, high])))
    ticks: list[float] = []
    for size in (0, 100, 10, 50, 1, 5, 20, 1000, 2, 200, 500, 30, 0.5):
        for tick in dict.fromkeys((size, -size)):
            away = np.abs(transform.transform(np.asarray([*ticks, np.inf])) - transform.transform(np.asarray([tick])))
            if low <= tick <= high and away.min() >= gap:
                ticks.append(tick)
    axes.set_yticks(sorted(ticks), [f"{tick:+g} %" if tick else "0 %" for tick in sorted(ticks)])
    axes.set_yticks([], minor=True)


def draw_steps(axes: Axes, timeline: Timeline, shown: np.ndarray, outlined: bool) -> None:
    """One rectangle per shown step, a collection per kind, and a triangle over each that preempted.

    A white outline parts neighbouring steps; where they are a pixel wide it would hide them.
    """
    for kind in STEP_KINDS:
        steps = shown & kind.mask(timeline)
        left, width = timeline.step_start_s[steps], timeline.step_duration_s[steps]
        x = np.stack([left, left, left + width, left + width], axis=1)
        y = np.outer(1e3 * width, [0, 1, 1, 0])
        edge = "white" if outlined else kind.colour
        bars = PolyCollection(list(np.stack([x, y], axis=2)), facecolor=kind.colour, edgecolor=edge, lw=0.3)
        axes.add_collection(bars, autolim=False)
    preempting = shown & (timeline.step_preemptions > 0)
    middle = timeline.step_start_s[preempting] + timeline.step_duration_s[preempting] / 2
    top = 1e3 * timeline.step_duration_s[preempting]
    axes.plot(middle, top, linestyle="", marker=7, ms=6, color=BLACK)


def timeline_of(result: RunResult) -> Timeline:
    """The run's timeline.

    Raises:
      InputError: it has none.
    """
    if result.timeline is None:
        raise InputError(f"{result.policy}: the run has no timeline: simulate with the timeline recorded")
    return result.timeline


def distribution(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values in order and the share of all that each one reaches, thinned to at most `MAX_POINTS`."""
    seconds = np.sort(seconds)
    share = np.arange(1, len(seconds) + 1) / len(seconds)
    kept = np.unique(np.linspace(0, len(seconds) - 1, MAX_POINTS).astype(int))
    return seconds[kept], share[kept]


def thinned(timeline: Timeline, dt_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Edges in seconds [t + 1], then router queue [t + 1], running and waiting [t + 1, I] from each edge on.

    Over `MAX_POINTS` intervals are binned and the largest of each bin kept; the last edge, where the run ends, repeats
    the last bin.
    """
    count = len(timeline.time_s)
    starts = np.arange(0, count, -(-count // MAX_POINTS))
    bins = [np.maximum.reduceat(x, starts) for x in (timeline.router_queue, timeline.running, timeline.waiting)]
    queue, running, waiting = (np.concatenate([x, x[-1:]]) for x in bins)
    return np.append(timeline.time_s[starts], timeline.time_s[-1] + dt_s), queue, running, waiting


def label_log_axis(axes: Axes) -> None:
    """Plain numbers at the fewest round values that give the log x axis at least four labels."""
    low, high = axes.get_xlim()
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = np.outer(decades, multiples).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 4:
            break
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def stack_size(panels: int) -> tuple[float, float]:
    """Inches of a figure of stacked panels, which get lower where there are many."""
    return 10, 1.4 + panels * min(1.05, max(0.5, 7 / panels))


def name_panel(axes: Axes, name: str) -> None:
    """The name of one of several stacked panels, to its left."""
    axes.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=12)


def tidy(axes: Axes, xlabel: str | None = None) -> None:
    """The look of all pictures: two spines, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, color="#E4E4E4", lw=0.7)
    if xlabel:
        axes.set_xlabel(xlabel)
