"""One decision of a trained policy, or the moments around it, as tables (rich) and pictures (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from jaxroute.anatomy import Watched, reasons
from jaxroute.errors import InputError
from jaxroute.plots import BLACK, BLUE, GREY, ORANGE, SKY, VERMILLION, name_panel, stack_size, tidy
from jaxroute.types import EMPTY

CROWDING = "crowding with the head"
"""The feature by which the shipped policy holds."""

MOST_SHOWN = 12.0
"""Scores beyond which a decision is beyond doubt: where their panel ends at most."""

MOST_TERMS = 5
"""Of the reasons that a table names; the others are summed."""

LEAST_TERM = 0.01
"""What a reason must amount to (score) to be named."""


def feature_table(watched: Watched, at: int) -> Table:
    """What the policy saw of each instance in an interval, by name; below it the scores, the chosen one marked."""
    seen, why = watched.seen(at), reasons(watched.policy.file, watched.seen(at), watched.logits[at])
    action = int(watched.action[at])
    table = _table(f"{watched.seconds(at):.2f} s: what the policy saw of each instance")
    table.add_column("feature", overflow="fold")
    for instance in range(watched.instances):
        table.add_column(f"instance {instance}", justify="right", no_wrap=True)
    for name, values in zip(watched.policy.file.instance_features, seen.instances.T, strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in values))
    table.add_section()
    styles = ["bold" if instance == action else "" for instance in range(watched.instances)]
    scores = [Text(f"{score:.2f}", style) for score, style in zip(why.score, styles, strict=True)]
    table.add_row(Text("score", "bold"), *scores)
    return table


def router_table(watched: Watched, at: int) -> Table:
    """What the policy saw of the router's queue in an interval, by name."""
    table = _table(f"{watched.seconds(at):.2f} s: what it saw of the router's own queue")
    table.add_column("feature")
    table.add_column("value", justify="right")
    for name, value in zip(watched.policy.file.router_features, watched.seen(at).router, strict=True):
        table.add_row(name, f"{value:.3f}")
    return table


def score_table(watched: Watched, at: int) -> Table:
    """What tells the instances' scores apart in an interval: what the features add on the linear path, and the rest.

    Every number counts from the mean over the instances that can take the request, so that columns add up.
    """
    why = reasons(watched.policy.file, watched.seen(at), watched.logits[at])
    can_take = ~np.isnan(why.score)
    terms = why.score_terms - why.score_terms[can_take].mean(axis=0)
    order = np.argsort(-np.abs(terms[can_take]).max(axis=0), kind="stable")
    shown = [number for number in order[:MOST_TERMS] if np.abs(terms[:, number]).max() >= LEAST_TERM]
    rows = [(watched.policy.file.instance_features[number], terms[:, number]) for number in shown]
    rows.append(("other features", terms.sum(axis=1) - terms[:, shown].sum(axis=1)))
    rows.append(("hidden layers", why.score_hidden - np.nanmean(why.score_hidden)))
    table = _table(f"{watched.seconds(at):.2f} s: what makes the scores differ")
    table.add_column("reason", overflow="fold")
    for instance in range(watched.instances):
        table.add_column(f"instance {instance}", justify="right", no_wrap=True)
    for name, values in rows:
        table.add_row(name, *(f"{value:+.2f}" for value in values))
    table.add_section()
    styles = ["bold" if instance == watched.action[at] else "" for instance in range(watched.instances)]
    totals = zip(why.score - np.nanmean(why.score), styles, strict=True)
    table.add_row(Text("score, from the mean", "bold"), *(Text(f"{value:+.2f}", style) for value, style in totals))
    return table


def hold_table(watched: Watched, at: int) -> Table:
    """What speaks for holding in an interval (above 0) and against it, and the sum."""
    why = reasons(watched.policy.file, watched.seen(at), watched.logits[at])
    table = _table(f"{watched.seconds(at):.2f} s: to hold, or to send to the best instance?")
    table.add_column("reason")
    table.add_column("score", justify="right")
    named = {name: value for name, value in list(why.hold_terms.items())[:MOST_TERMS] if abs(value) >= LEAST_TERM}
    for name, value in named.items():
        table.add_row(name, f"{value:+.2f}")
    table.add_row("other features", f"{why.hold - sum(named.values()):+.2f}")
    table.add_section()
    table.add_row(Text("hold" if why.hold > 0 else "send", "bold"), Text(f"{why.hold:+.2f}", "bold"))
    return table


def moments(watched: Watched, first: int, last: int, *, feature: str = CROWDING) -> Figure:
    """The intervals `first` to `last`: router's queue, one feature of each instance, and how far holding is ahead.

    Dark in the panel of the queue: the first request was held. A triangle in an instance's panel: a request was sent
    there. In the lowest panel, above 0 holding scores more than the best instance, below 0 less; no line where nothing
    waited.

    Raises:
      InputError: the window is empty or outside of the run, or no such feature.
    """
    _check_window(watched, first, last)
    column = _column(watched, feature)
    count = watched.instances
    width, height = stack_size(count + 2)
    figure = Figure(figsize=(width, height + 0.5), layout="constrained")
    queue, *panels, scores = figure.subplots(count + 2, 1, sharex=True)
    steps = slice(first, last + 1)
    edges = np.arange(first, last + 2) * watched.result.dt_s
    _draw_queue(queue, watched, steps, edges)
    values = watched.observed.instances[steps, :, column]
    margin = max(0.1 * float(np.ptp(values)), 1e-3)
    for instance, axes in enumerate(panels):
        axes.step(edges, np.append(values[:, instance], values[-1:, instance]), where="post", color=BLUE, lw=1.6)
        sent = np.flatnonzero((watched.action[steps] == instance) & (watched.head[steps] != EMPTY))
        axes.plot(edges[sent], values[sent, instance], linestyle="", marker="v", ms=6, color=BLACK)
        axes.set_ylim(values.min() - margin, values.max() + margin)
        name_panel(axes, f"instance {instance}")
        tidy(axes)
    _draw_margin(scores, watched, steps, edges)
    scores.set_xlim(edges[0], edges[-1])
    scores.set_xlabel("time (s)")
    handles = [
        Patch(color=SKY, label="waits at the router"),
        Patch(color=VERMILLION, label="held"),
        Line2D([], [], color=BLUE, label=feature),
        Line2D([], [], linestyle="", marker="v", color=BLACK, label="a request is sent here"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def choice_costs(labels: Sequence[str], own_s: Sequence[float], others_s: Sequence[float]) -> Figure:
    """Seconds of latency that each choice costs more than what the policy did: of the request, and of the others.

    Args:
      labels: of the choices.
      own_s, others_s: as `anatomy.latency_change_s` gives them.
    """
    figure = Figure(figsize=(8, 1.5 + 0.55 * len(labels)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(labels))[::-1]
    parts = (("the request itself", BLUE, 0.19, own_s), ("all others that were there", ORANGE, -0.19, others_s))
    most = max(1e-3, *(abs(value) for _, _, _, values in parts for value in values))
    for label, colour, offset, values in parts:
        axes.barh(rows + offset, values, height=0.34, color=colour, label=label)
        for row, value in zip(rows, values, strict=True):
            side = 1 if value >= 0 else -1
            place = (value + side * 0.02 * most, row + offset)
            axes.annotate(f"{value:+.2f}", place, ha="left" if side > 0 else "right", va="center", fontsize="small")
    axes.axvline(0, color=GREY, lw=1.2)
    low, high = min(0.0, *own_s, *others_s), max(0.0, *own_s, *others_s)
    axes.set_xlim(low - 0.18 * most, high + 0.18 * most)
    axes.set_yticks(rows, labels)
    tidy(axes, xlabel="latency against what the policy did (s)")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def step_through(watched: Watched, first: int, last: int, *, feature: str = CROWDING) -> FuncAnimation:
    """The intervals `first` to `last` one by one: the feature and the score of each instance, and what was decided.

    `to_jshtml()` of it can be played and stepped through in a notebook.

    Raises:
      InputError: see `moments`.
    """
    _check_window(watched, first, last)
    column = _column(watched, feature)
    count = watched.instances
    figure = Figure(figsize=(7.5, 1.6 + 0.42 * count))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.14, right=0.97, top=0.84, bottom=0.2)
    rows = np.arange(count)[::-1]
    values = watched.observed.instances[:, :, column]
    bars = axes.barh(rows, values[first], height=0.6, color=SKY)
    axes.set_yticks(rows, [f"instance {instance}" for instance in range(count)])
    axes.set_xlim(0, 1.1 * max(float(values[first : last + 1].max()), 1e-3))
    tidy(axes, xlabel=feature)
    axes.grid(False, axis="y")
    title = axes.set_title("", loc="left", fontsize="medium")

    def draw(frame: int) -> list[Any]:
        at = first + frame
        for instance, bar in enumerate(bars):
            bar.set_width(values[at, instance])
            bar.set_color(BLUE if watched.action[at] == instance else SKY)
        title.set_text(f"{watched.seconds(at):.2f} s, {watched.queue_length[at]} at the router: {_deed(watched, at)}")
        return [*bars, title]

    return FuncAnimation(figure, draw, frames=last - first + 1, interval=150, blit=False)


def _deed(watched: Watched, at: int) -> str:
    """What was done in an interval."""
    if watched.head[at] == EMPTY:
        return "nothing to decide"
    request, action = watched.head[at], watched.action[at]
    return f"request {request} held" if action == watched.instances else f"request {request} to instance {action}"


def _draw_queue(axes: Axes, watched: Watched, steps: slice, edges: np.ndarray) -> None:
    queue = watched.queue_length[steps]
    held = (watched.action[steps] == watched.instances) & (watched.head[steps] != EMPTY)
    for colour, values in ((SKY, queue), (VERMILLION, np.where(held, queue, 0))):
        axes.fill_between(edges, np.append(values, values[-1:]), step="post", color=colour, lw=0)
    axes.set_ylim(0, 1.15 * max(1, int(queue.max())))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    name_panel(axes, "router\n(requests)")
    tidy(axes)


def _draw_margin(axes: Axes, watched: Watched, steps: slice, edges: np.ndarray) -> None:
    """How much more holding scores than the best instance, cut at `MOST_SHOWN` either way."""
    logits, count = watched.logits[steps], watched.instances
    open_choice = (watched.head[steps] != EMPTY) & (logits > np.finfo(np.float32).min).all(axis=1)
    margin = np.where(open_choice, logits[:, count] - logits[:, :count].max(axis=1), np.nan)
    margin = np.clip(np.append(margin, margin[-1:]), -MOST_SHOWN, MOST_SHOWN)
    most = 1.15 * max(1.0, float(np.nanmax(np.abs(margin), initial=0.0)))
    axes.axhline(0, color=GREY, lw=1.2)
    axes.step(edges, margin, where="post", color=VERMILLION, lw=1.6)
    axes.set_ylim(-most, most)
    name_panel(axes, "hold less\nbest score")
    tidy(axes)


def _check_window(watched: Watched, first: int, last: int) -> None:
    if not 0 <= first <= last < len(watched.head):
        raise InputError(
            f"the window from interval {first} to {last} is empty or outside of the run, which has {len(watched.head)}"
        )


def _column(watched: Watched, feature: str) -> int:
    names = watched.policy.file.instance_features
    if feature not in names:
        raise InputError(f"unknown feature {feature!r}; the policy sees: {', '.join(names)}")
    return names.index(feature)


def _table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
