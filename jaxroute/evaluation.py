"""Rows of an evaluation -> comparisons cell by cell, files, and tables for the terminal."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute import plots
from jaxroute.candidates import Candidate
from jaxroute.evaluate import Row
from jaxroute.metrics import REFERENCE_POLICY
from jaxroute.output import csv_field, plain_json, report_paths, write_rows
from jaxroute.paired import COMPARED, FEWEST_SEEDS, Comparison, Interval, best_of, compare

COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
MEASURED = tuple(name for name in COLUMNS[COLUMNS.index("seed") + 1 :] if name not in ("rate_per_s", "routers"))
"""Columns that are averaged over the seeds."""

BETTER_STYLE, WORSE_STYLE = "bold green", "red"
ABSENT = "-"


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What load 1.0 means for one workload on one fleet.

    Attributes:
      workload: its name.
      instances: I.
      requests_per_s: sustained completions of the saturated fleet.
      requests: that the estimate rests on.
      seed: of those requests.
    """

    workload: str
    instances: int
    requests_per_s: float
    requests: int
    seed: int


@dataclasses.dataclass(frozen=True)
class CellResult:
    """One cell in numbers.

    Attributes:
      workload, instances, load, rate_per_s, routers: the cell.
      seeds: that it rests on.
      reference: the policy that all are compared with.
      best_heuristic: the heuristic with the lowest mean E2E.
      policies: comparisons by policy, in the order in which they were asked for.
    """

    workload: str
    instances: int
    load: float
    rate_per_s: float
    seeds: int
    reference: str
    best_heuristic: str
    policies: Mapping[str, Comparison]
    routers: int = 1


def cell_result(rows: Sequence[Row], candidates: Sequence[Candidate]) -> CellResult:
    """Aggregates the rows of one cell, which hold every policy with the same seeds in one order."""
    columns = {
        candidate.name: {
            column: np.asarray([getattr(row, column) for row in rows if row.policy == candidate.name], np.float64)
            for column in MEASURED
        }
        for candidate in candidates
    }
    best = best_of(columns, [candidate.name for candidate in candidates if candidate.is_heuristic])
    first = rows[0]
    return CellResult(
        workload=first.workload,
        instances=first.instances,
        load=first.load,
        rate_per_s=first.rate_per_s,
        seeds=len(rows) // len(candidates),
        reference=REFERENCE_POLICY,
        best_heuristic=best,
        policies=compare(columns, reference=REFERENCE_POLICY, best=best),
        routers=first.routers,
    )


def write_evaluation(
    folder: Path,
    rows: Sequence[Row],
    cells: Sequence[CellResult],
    capacities: Sequence[Capacity],
    settings: Mapping[str, object],
) -> None:
    """Writes `evaluation.csv`, `.json` and `.png` into a folder; all three are complete before the first is in place.

    Raises:
      OSError: the folder cannot be made or written.
    """
    names = ("evaluation.csv", "evaluation.json", "evaluation.png")
    with report_paths(folder, *names) as (csv_file, json_file, picture):
        write_rows(csv_file, COLUMNS, ([_field(row, column) for column in COLUMNS] for row in rows))
        json_file.write_text(_json(cells, capacities, settings), encoding="utf-8")
        plots.save(plots.relative_latency(cells), picture)


def capacity_table(capacities: Sequence[Capacity]) -> Table:
    """The estimated capacities."""
    table = _empty_table("capacity, which load 1.0 means")
    for heading in ("workload", "instances", "requests/s"):
        table.add_column(heading, justify="left" if heading == "workload" else "right", no_wrap=True)
    for each in capacities:
        table.add_row(Path(each.workload).name, str(each.instances), f"{each.requests_per_s:.4g}")
    return table


def cell_table(cell: CellResult) -> Group:
    """One cell as a table, one row per policy; differences whose interval leaves out 0 are coloured."""
    reference, best = cell.reference, cell.best_heuristic
    routers = f", {cell.routers} routers" if cell.routers > 1 else ""
    table = _empty_table(
        f"{Path(cell.workload).name}, {cell.instances} instances{routers}, load {cell.load:g} "
        f"({cell.rate_per_s:.4g} requests/s), {cell.seeds} seeds"
    )
    intervals = ("mean E2E s\n[95 %]", f"vs {reference}\n% [95 %]", "vs best\n% [95 %]")
    numbers = ("E2E p99\ns", "TTFT\ns", "TTFT\np99 s", "make-\nspan s", "pre-\nempt.")
    table.add_column("\npolicy", overflow="fold", min_width=min(26, max(map(len, cell.policies))))
    # In a narrow terminal an interval goes below its value before any number is cut off.
    for heading in intervals:
        table.add_column(heading, justify="right", min_width=10)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, policy in cell.policies.items():
        means = policy.means
        table.add_row(
            Text(name),
            _with_interval(means["e2e_mean_s"], _seconds),
            Text(ABSENT) if name == reference else _difference(policy.against_reference["e2e_mean_s"]),
            Text("best") if name == best else _difference(policy.against_best["e2e_mean_s"]),
            *(_seconds(means[each].value) for each in ("e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "makespan_s")),
            f"{means['preemptions'].value:,.0f}",
        )
    caption = f"best heuristic by mean E2E: {best}; green and red: better and worse, the interval leaves out 0"
    if cell.seeds < FEWEST_SEEDS:
        caption = f"best heuristic by mean E2E: {best}; fewer than {FEWEST_SEEDS} seeds: no difference is significant"
    return Group(table, Text(caption, style="italic"))


def _field(row: Row, column: str) -> str:
    """As everywhere, but for the load: as it was given."""
    return str(row.load) if column == "load" else csv_field(getattr(row, column))


def _empty_table(title: str) -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")


def _seconds(value: float) -> str:
    if math.isnan(value):
        return ABSENT
    decimals = 3 if value < 10 else 2 if value < 100 else 1 if value < 1000 else 0
    return f"{value:z.{decimals}f}"


def _percent(value: float) -> str:
    return f"{value:+z.{1 if abs(value) < 100 else 0}f}"


def _with_interval(interval: Interval, text: Callable[[float], str]) -> Text:
    if math.isnan(interval.value):
        return Text(ABSENT)
    if math.isnan(interval.low):
        return Text(text(interval.value))
    return Text(f"{text(interval.value)} [{text(interval.low)}, {text(interval.high)}]")


def _difference(interval: Interval) -> Text:
    shown = _with_interval(interval, _percent)
    if interval.significant:
        shown.stylize(BETTER_STYLE if interval.value < 0 else WORSE_STYLE)
    return shown


def _json(cells: Sequence[CellResult], capacities: Sequence[Capacity], settings: Mapping[str, object]) -> str:
    content = {
        "settings": settings,
        "capacities": [dataclasses.asdict(capacity) for capacity in capacities],
        "cells": [_cell_content(cell) for cell in cells],
    }
    return json.dumps(plain_json(content), indent=2, allow_nan=False) + "\n"


def _cell_content(cell: CellResult) -> dict[str, object]:
    plain = {field: getattr(cell, field) for field in vars(cell) if field != "policies"}
    return plain | {
        "policies": {
            name: {
                "means": {column: _interval_content(each) for column, each in policy.means.items()},
                "against_reference_percent": {
                    column: _difference_content(policy.against_reference[column]) for column in COMPARED
                },
                "against_best_heuristic_percent": {
                    column: _difference_content(policy.against_best[column]) for column in COMPARED
                },
            }
            for name, policy in cell.policies.items()
        }
    }


def _interval_content(interval: Interval) -> dict[str, object]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _difference_content(interval: Interval) -> dict[str, object]:
    return _interval_content(interval) | {"significant": interval.significant}
