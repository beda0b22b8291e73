"""Elasticities -> a table, a JSON file and a tornado picture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute.calibrate.sensitivity import QUANTITIES, Elasticity
from jaxroute.output import atomic_path, plain_json
from jaxroute.paired import Interval
from jaxroute.plots import BLACK, BLUE, GREY, ORANGE, VERMILLION, save, tidy

LABELS = {"e2e_mean": "mean E2E", "ttft_mean": "mean TTFT", "tbt_mean": "mean TBT", "e2e_p99": "E2E p99"}
ABSENT = "-"


def sensitivity_table(title: str, means: Mapping[str, Interval], found: Sequence[Elasticity]) -> Group:
    """A row for each parameter, those of the hardware first; % for 1 % more, with the 95 % interval over the seeds."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column("\n1 % more of", no_wrap=True)
    for name in QUANTITIES:
        table.add_column(f"{LABELS[name]}\n% [95 %]", justify="right", no_wrap=True)
    for heading in ("anchored\nmean E2E", "pathwise\nmean E2E"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        derivatives = (
            ABSENT if of is None else _percent(of["e2e_mean"].value) for of in (each.anchored, each.pathwise)
        )
        table.add_row(label_of(each), *(_with_interval(each.difference[name]) for name in QUANTITIES), *derivatives)
    now = ", ".join(f"{LABELS[name]} {means[name].value:.3g} s" for name in QUANTITIES)
    return Group(table, Text(f"now: {now}", style="italic"))


def label_of(elasticity: Elasticity) -> str:
    """The parameter, and the coefficients behind it."""
    parameter = elasticity.parameter
    behind = f" ({', '.join(parameter.members)})" if len(parameter.members) > 1 else ""
    return parameter.name + behind


def tornado(title: str, found: Sequence[Elasticity]) -> Figure:
    """Elasticities of mean E2E, mean TTFT and E2E p99, a panel each, the largest mean E2E on top.

    Bars: by difference, blue where more of it is faster and orange where slower, with 95 % intervals over seeds; a
    diamond: the anchored derivative; a cross: the pathwise one, at the edge where it is beyond the panel.
    """
    shown = sorted(found, key=lambda each: abs(each.difference["e2e_mean"].value))
    names = ("e2e_mean", "ttft_mean", "e2e_p99")
    figure = Figure(figsize=(11, 1.6 + 0.3 * len(shown)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        _bars(axes, shown, name)
        tidy(axes, xlabel=f"{LABELS[name]}, % for 1 % more")
        axes.grid(False, axis="y")
    panels[0].set_yticks(range(len(shown)), [label_of(each) for each in shown])
    figure.suptitle(title, fontsize="medium")
    handles, labels = panels[0].get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))
    figure.legend(kept.values(), kept.keys(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write_sensitivity(
    folder: Path, title: str, means: Mapping[str, Interval], found: Sequence[Elasticity], settings: Mapping[str, object]
) -> None:
    """Writes `sensitivity.json` and `sensitivity.png`; both are complete before the first is in place.

    Raises:
      OSError: the folder cannot be made or written.
    """
    content = {
        "settings": settings,
        "seconds": {name: dataclasses.asdict(interval) for name, interval in means.items()},
        "elasticities": [_content(each) for each in found],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "sensitivity.json") as file, atomic_path(folder / "sensitivity.png") as picture:
        file.write_text(json.dumps(plain_json(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save(tornado(title, found), picture)


def _bars(axes: Axes, shown: Sequence[Elasticity], name: str) -> None:
    values = np.asarray([each.difference[name].value for each in shown])
    low = np.asarray([each.difference[name].low for each in shown])
    high = np.asarray([each.difference[name].high for each in shown])
    rows = np.arange(len(shown))
    for wanted, colour, label in ((values <= 0, BLUE, "more of it is faster"), (values > 0, ORANGE, "slower")):
        axes.barh(rows[wanted], values[wanted], color=colour, height=0.62, label=label)
    known = ~np.isnan(low)
    axes.hlines(rows[known], low[known], high[known], color=BLACK, lw=1.2)
    ends = np.concatenate([values, low[known], high[known]])
    anchored = _derivatives([each.anchored for each in shown], name)
    ends = np.concatenate([ends, anchored[~np.isnan(anchored)]])
    reach = 1.15 * max(np.abs(ends).max(), 0.05)
    pathwise = np.clip(_derivatives([each.pathwise for each in shown], name), -reach, reach)
    axes.plot(anchored, rows, "D", ms=4.5, color="white", mec=BLACK, mew=1, label="anchored derivative")
    axes.plot(pathwise, rows, "x", ms=5, color=VERMILLION, mew=1.4, label="pathwise derivative", clip_on=False)
    axes.axvline(0, color=GREY, lw=1)
    axes.set_xlim(-reach, reach)


def _derivatives(columns: Sequence[Mapping[str, Interval] | None], name: str) -> np.ndarray:
    return np.asarray([math.nan if column is None else column[name].value for column in columns])


def _content(each: Elasticity) -> dict[str, object]:
    def plain(intervals: dict[str, Interval] | None) -> object:
        return None if intervals is None else {name: dataclasses.asdict(own) for name, own in intervals.items()}

    return {
        "parameter": each.parameter.name,
        "coefficients": each.parameter.members,
        "relative_change": each.parameter.step,
        "difference": plain(each.difference),
        "anchored": plain(each.anchored),
        "pathwise": plain(each.pathwise),
    }


def _percent(value: float) -> str:
    return f"{value:+z.2f}"


def _with_interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return _percent(interval.value)
    return f"{_percent(interval.value)} [{_percent(interval.low)}, {_percent(interval.high)}]"
