"""(b) Prediction of output lengths: the paper's four rows, and what naming the most common bucket gives."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy import stats

from jaxroute.paired import LEVEL, Interval
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.printed_prediction import PRINTED, Printed, heavy_share, majority_remarks, majority_table
from jaxroute.predictor.folder import DEFAULT, digest, predictor_named

Numbers = Mapping[str, Any]
"""Results in JSON's own types."""


def run(context: Context) -> Findings:
    """Measures the shipped predictor on the prompts that are given, or says what it was when it was made."""
    command = context.command(PART.letter)
    measured = None
    if context.prompts:
        context.report(f"the shipped predictor on {', '.join(path.name for path in context.prompts)}")
        measured = _measured(context)
    tables = [_printed_table(command) if measured is None else _four_rows(measured, command)]
    tables += [_recorded_table(command), majority_table(command)]
    return Findings(
        setting=_setting(measured),
        tables=tuple(tables),
        pictures=(_picture(measured, command),),
        remarks=(*remarks(measured), *majority_remarks()),
        cuts=_cuts(context, measured),
        commands=(
            f"jaxroute predictor evaluate --model {DEFAULT} --data PROMPTS --out DIR",
            "jaxroute predictor train --config default --data PROMPTS --set buckets.kind=paper --out RUN",
        ),
    )


def _measured(context: Context) -> Numbers:
    file = predictor_named(DEFAULT)
    linear = not context.quick
    key = {
        "part": "prediction",
        "predictor": digest(file),
        "prompts": [hashlib.sha256(path.read_bytes()).hexdigest() for path in context.prompts],
        "linear": linear,
    }
    return cast(Numbers, context.result(key, evaluation(context.prompts, linear)))


def evaluation(prompts: Sequence[Path], linear: bool) -> Callable[[], Numbers]:
    """Measures the shipped predictor on the test rows of some files when it is called."""

    def compute() -> Numbers:
        from jaxroute.predictor.evaluation import evaluate
        from jaxroute.predictor.prompts import read_prompts

        table = read_prompts(prompts)
        found = evaluate(predictor_named(DEFAULT), table, linear=linear)
        rows = [dataclasses.asdict(row) for row in found.rows if row.task == "all"]
        # A number that is none has no JSON form.
        plain = [
            {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()}
            for row in rows
        ]
        train = table.where(split="train")
        first = {kind: float(np.mean(train.output_tokens < edge)) for kind, edge in (("unequal", 250), ("equal", 512))}
        return {"rows": plain, "first_bucket": first, "train": len(train)}

    return compute


def share(value: float, rows: int) -> Interval:
    """A share of some rows in %, with Wilson's interval."""
    low, high = stats.binomtest(round(value * rows), rows).proportion_ci(LEVEL, method="wilson")
    return Interval(100 * value, 100 * low, 100 * high, rows)


def _setting(measured: Numbers | None) -> tuple[str, ...]:
    general = (
        "The paper's DistilBERT names the bucket of an answer by Llama-2-7B, with and without `This is a TASK task` "
        "behind the prompt; its text and its slides print different numbers, and neither its prompts nor the lengths "
        "of the answers are public. Ours is the predictor that ships with jaxroute, two layers of 64 units."
    )
    if measured is None:
        return (general, "No prompts with answers were given (`--prompts FILE`), so nothing is measured here.")
    rows = max(row["n"] for row in measured["rows"])
    return (
        general,
        f"Measured on {rows:,} test rows of the prompts that were given; buckets are fitted on their "
        f"{measured['train']:,} training rows, as are the baselines. The predictor was trained on five buckets as "
        "frequent as each other; its probabilities of the paper's wide ones are sums of theirs. Intervals: Wilson's, "
        "over rows.",
    )


def _row_of(measured: Numbers, printed: Printed, rows: str) -> Numbers | None:
    kind = "equal" if printed.equal else "unequal"
    for row in measured["rows"]:
        if row["buckets"].startswith(kind) and row["task_hint"] == printed.hint and row["rows"] == rows:
            return cast(Numbers, row)
    return None


def _four_rows(measured: Numbers, command: str) -> Table:
    found = []
    for printed in PRINTED:
        for rows, name in (("all", "all rows"), ("llm", "answers of an LLM")):
            row = _row_of(measured, printed, rows)
            if row is None:
                continue
            cells = (
                Cell(share(row["top1"], row["n"]), printed.text, decimals=1, source="text"),
                Cell(text=f"{printed.slides:g}"),
                *(_baseline(row, column) for column in ("majority", "task_majority", "linear")),
                Cell(text=f"{row['n']:,}"),
            )
            found.append(Row(f"{printed.name}; {name}", cells, headline="predictor" if rows == "all" else ""))
    return Table(
        title="Right bucket, %",
        columns=(
            "buckets",
            "predictor",
            "paper's slides",
            "most common bucket",
            "most common of the task",
            "linear bag of tokens",
            "rows",
        ),
        rows=tuple(found),
        command=command,
        seeds="no seeds: one predictor, intervals over rows",
        note="Unequal: from 250 tokens on, each four times as wide; equal: 512 tokens. The paper has no baseline.",
    )


def _baseline(row: Numbers, column: str) -> Cell:
    return Cell(text="-") if row[column] is None else Cell(share(row[column], row["n"]), decimals=1)


def _printed_table(command: str) -> Table:
    return Table(
        title="Right bucket, % (printed only)",
        columns=("buckets", "paper's text", "paper's slides"),
        rows=tuple(Row(each.name, (Cell(text=f"{each.text:g}"), Cell(text=f"{each.slides:g}"))) for each in PRINTED),
        command=command,
        seeds="nothing was measured",
    )


def _recorded_table(command: str) -> Table:
    """What the shipped predictor was measured at when it was made."""
    file = predictor_named(DEFAULT)
    confusion = file.confusion
    rows = []
    kinds = [("all tasks", confusion.overall), *zip(file.tasks, confusion.by_task, strict=True)]
    for name, counts in kinds:
        total = int(counts.sum())
        if total:
            right, common = np.trace(counts) / total, counts.sum(axis=1).max() / total
            cells = (
                Cell(share(right, total), decimals=1),
                Cell(share(common, total), decimals=1),
                Cell(text=f"{total:,}"),
            )
            rows.append(Row(name, cells))
    return Table(
        title=f"The shipped predictor on its own {len(file.buckets)} buckets when it was made, right bucket, %",
        columns=("task", "predictor", "most common bucket of these rows", "rows"),
        rows=tuple(rows),
        command=command,
        seeds="no seeds: one predictor, intervals over rows",
        note=f"Buckets: {', '.join(file.buckets.names())} output tokens; test rows, task not told.",
    )


def _picture(measured: Numbers | None, command: str) -> Picture:
    from jaxroute.plots_prediction import accuracy_picture

    bars: list[tuple[str, dict[str, float | None]]] = []
    for printed in PRINTED:
        values: dict[str, float | None] = {"paper, text": printed.text, "paper, slides": printed.slides}
        row = None if measured is None else _row_of(measured, printed, "all")
        if row is not None:
            values |= {"ours": 100 * row["top1"], "most common bucket": 100 * row["majority"]}
        bars.append((printed.name, values))
    ours = "" if measured is None else ", and the shipped predictor and the most common bucket on the prompts at hand"
    return Picture("b-prediction", accuracy_picture(bars), f"The paper's four rows{ours}.", command)


def _cuts(context: Context, measured: Numbers | None) -> tuple[str, ...]:
    if measured is None or not context.quick:
        return ()
    return ("Short form: the linear bag of tokens, which takes a minute or two, is left out.",)


def remarks(measured: Numbers | None) -> tuple[str, ...]:
    """What was measured against what is printed."""
    if measured is None:
        return ()
    knows = f"{100 * float(str(predictor_named(DEFAULT).training['val_task_top1'])):.0f} %"
    found = []
    unequal, equal = (100 * measured["first_bucket"][kind] for kind in ("unequal", "equal"))
    found.append(
        f"The printed numbers are not for this data: {unequal:.0f} % of the answers at hand are in the first unequal "
        f"bucket and {equal:.0f} % in the first equal one, of the paper's about {100 * (1 - heavy_share()):.0f} %."
    )
    for equal in (False, True):
        told, untold = (_row_of(measured, each, "all") for each in PRINTED if each.equal == equal)
        if told is not None and untold is not None:
            kind = "equal" if equal else "unequal"
            printed = [each.text for each in PRINTED if each.equal == equal]
            gain, hint = (100 * (told["top1"] - other) for other in (told["majority"], untold["top1"]))
            found.append(
                f"On {kind} buckets the predictor is right {gain:+.1f} points more often than the commonest bucket; to "
                f"be told the task changes {hint:+.1f} points (printed: {printed[0] - printed[1]:+.1f}). Prompts give "
                f"their task away by their wording: the shipped predictor names it in {knows} of its validation rows."
            )
    return tuple(found)


PART = Part(
    letter="b",
    name="prediction",
    title="Prediction of output lengths",
    paper="section 5.1 and Table 1; slides",
    run=run,
)
