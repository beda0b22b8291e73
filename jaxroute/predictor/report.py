"""Figures of a length predictor -> tables for the terminal, CSV, JSON and a picture."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from jaxroute.output import plain_json, report_paths, write_rows
from jaxroute.plots import save
from jaxroute.predictor.evaluation import ALL, Evaluation, Row

BEST_STYLE = "bold green"
ABSENT = "-"
SHARES = ("top1", "macro_f1", "off_by_one", "ece", "majority", "task_majority", "linear")
COMPARED = ("top1", "majority", "task_majority", "linear")
HEADINGS = {
    "top1": "top-1",
    "macro_f1": "macro\nF1",
    "off_by_one": "off by\none",
    "ece": "calib.\nerror",
    "token_mae": "MAE\ntokens",
    "majority": "most\ncommon",
    "task_majority": "of the\ntask",
    "linear": "linear\nbag",
}
FIELDS = tuple(field.name for field in dataclasses.fields(Row))


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes `evaluation.json`, `evaluation.csv` and `confusion.png`; all are complete before the first is in place.

    The JSON is a list of rows over all tasks, each with those of its tasks under `tasks`; the CSV has all of them.

    Raises:
      OSError: the folder cannot be made or written.
    """
    names = ("evaluation.csv", "evaluation.json", "confusion.png")
    with report_paths(folder, *names) as (csv_file, json_file, picture):
        write_rows(csv_file, FIELDS, ([_field(getattr(row, name)) for name in FIELDS] for row in evaluation.rows))
        content = json.dumps(plain_json(_nested(evaluation.rows)), indent=2, allow_nan=False)
        json_file.write_text(content + "\n", encoding="utf-8")
        save(confusion_picture(evaluation), picture)


def four_rows_table(evaluation: Evaluation) -> Table:
    """One line for each kind of buckets, with and without task, on all rows and on those of an LLM."""
    rows = [row for row in evaluation.rows if row.task == ALL]
    return _table(f"{rows[0].model}: length buckets", "buckets", [(_buckets(row), row) for row in rows])


def task_table(evaluation: Evaluation) -> Table:
    """One line for each task, on the predictor's own buckets."""
    rows = [row for row in evaluation.rows if row.task != ALL and not row.derived]
    return _table(f"{rows[0].model}: {rows[0].buckets} by task", "task", [(row.task, row) for row in rows])


def confusion_picture(evaluation: Evaluation) -> Figure:
    """True against predicted bucket, over all tasks and for each; shares of the true bucket, and rows.

    With the hint where the predictor takes one.
    """
    confusion = evaluation.confusions[max(evaluation.confusions)]
    shown = [(ALL, confusion.overall)]
    shown += [
        (task, counts) for task, counts in zip(evaluation.tasks, confusion.by_task, strict=True) if counts.sum() > 0
    ]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    size = max(3.2, 0.62 * len(evaluation.buckets))
    figure = Figure(figsize=(size * columns, (size + 0.2) * lines), layout="constrained")
    panels = np.asarray(figure.subplots(lines, columns, squeeze=False)).ravel()
    for axes, (name, counts) in zip(panels, shown, strict=False):
        _draw(axes, name, counts, evaluation.buckets)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("predicted output tokens")
    figure.supylabel("true output tokens")
    return figure


def _draw(axes: Axes, name: str, counts: np.ndarray, buckets: Sequence[str]) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.ndindex(counts.shape):
        if counts[true, predicted]:
            dark = shares[true, predicted] > 0.55
            axes.text(
                predicted,
                true,
                f"{100 * shares[true, predicted]:.0f} %\n{counts[true, predicted]}",
                ha="center",
                va="center",
                fontsize=6.5,
                color="white" if dark else "black",
            )
    right = np.trace(counts) / max(1, counts.sum())
    axes.set_title(f"{name}: {100 * right:.1f} % of {counts.sum():,}", fontsize=9)
    axes.set_xticks(range(len(buckets)), buckets, fontsize=7, rotation=45, ha="right")
    axes.set_yticks(range(len(buckets)), buckets, fontsize=7)
    axes.tick_params(length=0)


def _table(title: str, first: str, rows: Sequence[tuple[str, Row]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column(f"\n{first}", no_wrap=True)
    table.add_column("\ntask told")
    table.add_column("\nrows")
    table.add_column("\nn", justify="right")
    for heading in HEADINGS.values():
        table.add_column(heading if "\n" in heading else f"\n{heading}", justify="right")
    before = None
    for label, row in rows:
        best = max(value for name in COMPARED if not math.isnan(value := getattr(row, name)))
        if before is not None and (label, row.task_hint) != before:
            table.add_section()
        before = (label, row.task_hint)
        table.add_row(
            label,
            "yes" if row.task_hint else "no",
            row.rows,
            f"{row.n:,}",
            *(_shown(row, name, best=name in COMPARED and getattr(row, name) == best) for name in HEADINGS),
        )
    return table


def _shown(row: Row, name: str, *, best: bool) -> str:
    value = getattr(row, name)
    if math.isnan(value):
        return ABSENT
    text = f"{value:.3f}" if name in SHARES else f"{value:.1f}"
    return f"[{BEST_STYLE}]{text}[/]" if best else text


def _buckets(row: Row) -> str:
    return f"{row.buckets} (derived)" if row.derived else row.buckets


def _nested(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows over all tasks, each with its tasks."""
    found = []
    for row in rows:
        if row.task == ALL:
            same = [
                other
                for other in rows
                if other.task != ALL
                and (other.buckets, other.derived, other.task_hint, other.rows)
                == (row.buckets, row.derived, row.task_hint, row.rows)
            ]
            found.append(dataclasses.asdict(row) | {"tasks": [dataclasses.asdict(other) for other in same]})
    return found


def _field(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.6f}"
