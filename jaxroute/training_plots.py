"""Training runs -> pictures."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxroute.plots import GREY, policy_line_style

GAIN = "valid_e2e_mean"

WIDTH_IN, HEIGHT_IN = 7.5, 3.8
"""Of a picture without its legend."""

LINE_IN, CHARACTER_IN, ROW_IN = 0.6, 0.085, 0.21
"""Inches that the line and the space of a legend's entry take, and a character and the height of it."""

WORST = 50.0
"""Change, %, at which the picture is cut: a run that fails can be hundreds of per cent worse, and hide all others."""


def learning_curve(runs: Sequence[tuple[str, Path]]) -> Figure:
    """Change of the mean E2E against round robin, % (validation), over the router intervals simulated.

    Args:
      runs: a label and the `metrics.csv` of each; a line is the mean over the seeds of a run, its band their range, and
        a dot the last point.
    """
    columns = _columns([label for label, _ in runs], WIDTH_IN)
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN + ROW_IN * math.ceil(len(runs) / columns)), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=GREY, lw=1.2, zorder=1)
    lowest = 0.0
    for index, (label, path) in enumerate(runs):
        steps, values = _curve(path)
        style = policy_line_style(index)
        mean = [np.mean(each) for each in values]
        axes.plot(steps, mean, lw=1.8, label=label, **style)
        axes.plot(steps[-1:], mean[-1:], "o", ms=5, color=style["color"])
        low, high = [min(each) for each in values], [max(each) for each in values]
        lowest = min([lowest, *low])
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.18, lw=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, color="#E4E4E4", lw=0.7)
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_xlabel("router intervals simulated, of one seed")
    axes.set_ylabel("mean E2E against round robin (%)")
    if axes.get_ylim()[1] > WORST:
        axes.set_ylim(lowest - WORST / 10, WORST)
        axes.set_title(f"cut at +{WORST:.0f} %", fontsize="small", loc="right", color=GREY)
    if runs:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


def _columns(labels: Sequence[str], width_in: float) -> int:
    """Columns of a legend, at most three, that a picture of `width_in` inches has room for."""
    longest = max((len(label) for label in labels), default=0)
    return int(np.clip(width_in // (LINE_IN + CHARACTER_IN * longest), 1, 3))


def _curve(path: Path) -> tuple[list[int], list[list[float]]]:
    """Where the run was validated, and the change of each seed there, %."""
    found: dict[int, list[float]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row[GAIN]:
                found[int(row["env_steps"])].append(100 * float(row[GAIN]))
    steps = sorted(found)
    return steps, [found[step] for step in steps]
