"""Pictures of a whole cluster over time: what the router held and sent, and what every engine did."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxroute.actions import action_counts, is_held
from jaxroute.errors import InputError
from jaxroute.plots import (
    BLACK,
    GREY,
    MAX_OUTLINED_STEPS,
    POLICY_COLOURS,
    STEP_KINDS,
    VERMILLION,
    draw_steps,
    name_panel,
    stack_size,
    tidy,
    timeline_of,
)
from jaxroute.results import RunResult

BINS = 80
"""Bins of time in a picture of the decisions."""

HATCHES = ("", "///", "...", "xxx")
"""Tell instances of one colour apart."""

MOST_NAMED = 16
"""Instances that the legend names; of more it names the first and the last."""

HELD, QUEUED = VERMILLION, "#F3C9AE"


def cluster_timeline(result: RunResult, start_s: float, end_s: float) -> Figure:
    """The router above, the engines below, over [start_s, end_s).

    The router's panel is as high as its queue is long, dark where it held although a request waited. In an instance's
    panel every engine step is a bar as wide and as tall as it took long (ms), in the colour of what it ran, so that a
    tall bar is a TBT spike for all that decode there; a triangle marks a step that preempted, and a tick below the
    axis a request that was sent there.

    Raises:
      InputError: the run has no timeline, or the window is empty.
    """
    timeline = timeline_of(result)
    if not start_s < end_s:
        raise InputError(f"the window from {start_s} s to {end_s} s is empty: give an end after the start")
    width, height = stack_size(result.instances + 1)
    figure = Figure(figsize=(width, height + 0.3), layout="constrained")
    router, *lanes = figure.subplots(result.instances + 1, 1, sharex=True)
    _draw_router(router, result, start_s, end_s)
    shown = (timeline.step_start_s < end_s) & (timeline.step_start_s + timeline.step_duration_s > start_s)
    dense = np.count_nonzero(shown) > MAX_OUTLINED_STEPS * result.instances
    longest_ms = 1e3 * timeline.step_duration_s[shown].max(initial=1e-3)
    for instance, axes in enumerate(lanes):
        draw_steps(axes, timeline, shown & (timeline.step_instance == instance), outlined=not dense)
        _draw_sent(axes, result, instance, longest_ms)
        axes.set_ylim(-0.16 * longest_ms, 1.25 * longest_ms)
        axes.yaxis.set_major_locator(MaxNLocator(3, min_n_ticks=2))
        name_panel(axes, f"instance {instance}\n(step, ms)")
        tidy(axes)
    router.set_xlim(start_s, end_s)
    lanes[-1].set_xlabel("time (s)")
    figure.legend(handles=_timeline_key(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def action_share(result: RunResult, bins: int = BINS) -> Figure:
    """Share of the decisions over time: to each instance, and to hold; white where there was nothing to decide.

    A decision is a router interval in which a request waited at the router.

    Raises:
      InputError: the run has no timeline.
    """
    counts = action_counts(result, bins)
    # Where there was nothing to decide, nothing is drawn.
    shares = np.nan_to_num(counts.shares)
    shares = np.concatenate([shares, shares[-1:]])
    tops = np.cumsum(shares, axis=1)
    bottoms = tops - shares
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots()
    for column in range(shares.shape[1]):
        look = _look_of(column, result.instances)
        axes.fill_between(counts.edges_s, bottoms[:, column], tops[:, column], step="post", lw=0, **look)
    axes.set_xlim(counts.edges_s[0], counts.edges_s[-1])
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("share of the decisions")
    tidy(axes, xlabel="time (s)")
    axes.set_title(
        f"{result.policy}: held in {100 * counts.hold_share:.1f} % of the decisions", loc="left", fontsize="medium"
    )
    handles = [Patch(label=label, **_look_of(column, result.instances)) for column, label in _named(result.instances)]
    figure.legend(handles=handles[::-1], loc="outside right upper", frameon=False)
    return figure


def _draw_router(axes: Axes, result: RunResult, start_s: float, end_s: float) -> None:
    timeline = timeline_of(result)
    shown = (timeline.time_s < end_s) & (timeline.time_s + result.dt_s > start_s)
    edges = np.append(timeline.time_s[shown], timeline.time_s[shown][-1:] + result.dt_s)
    queue, held = timeline.router_queue[shown], is_held(result)[shown]
    for colour, values in ((QUEUED, queue), (HELD, np.where(held, queue, 0))):
        axes.fill_between(edges, np.append(values, values[-1:]), step="post", color=colour, lw=0)
    axes.set_ylim(0, 1.15 * max(1, queue.max(initial=0)))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    name_panel(axes, "router\n(requests)")
    tidy(axes)


def _draw_sent(axes: Axes, result: RunResult, instance: int, longest_ms: float) -> None:
    sent_s = result.records.dispatch_s[result.records.instance == instance]
    axes.vlines(sent_s, -0.14 * longest_ms, -0.03 * longest_ms, color=BLACK, lw=0.8)
    axes.axhline(0, color=GREY, lw=0.6)


def _timeline_key() -> list[Patch | Line2D]:
    handles: list[Patch | Line2D] = [Patch(color=kind.colour, label=kind.label) for kind in STEP_KINDS]
    handles.append(Line2D([], [], linestyle="", marker="v", color=BLACK, label="preempts"))
    handles.append(Patch(color=QUEUED, label="waits at the router"))
    handles.append(Patch(color=HELD, label="held: nothing is sent"))
    handles.append(Line2D([], [], linestyle="", marker="|", ms=9, color=BLACK, label="a request is sent here"))
    return handles


def _look_of(column: int, instances: int) -> dict[str, Any]:
    """Fill of an instance's share, or of hold, the last column."""
    if column == instances:
        return {"facecolor": BLACK, "edgecolor": BLACK}
    colours = POLICY_COLOURS[:-1]
    hatch = HATCHES[column // len(colours) % len(HATCHES)]
    return {"facecolor": colours[column % len(colours)], "edgecolor": "white", "hatch": hatch}


def _named(instances: int) -> list[tuple[int, str]]:
    """Columns in the legend, with their names."""
    columns = list(range(instances)) if instances <= MOST_NAMED else [0, instances - 1]
    return [*((column, f"instance {column}") for column in columns), (instances, "hold")]
