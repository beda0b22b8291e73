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
from jaxroute.predictor.folder import DEFAULT, digest, predictor_named
from jaxroute.workload.five_task import TASKS

Numbers = Mapping[str, Any]
"""Results in JSON's own types."""


@dataclasses.dataclass(frozen=True)
class Printed:
    """One of the paper's four rows, % right.

    Attributes:
      equal: whether its buckets are as wide as each other.
      hint: whether the task is in the prompt.
      text: as version 2 of the text has it; equal buckets of 250 tokens.
      slides: as the slides have it; equal buckets of 512 tokens.
    """

    equal: bool
    hint: bool
    text: float
    slides: float

    @property
    def name(self) -> str:
        """In words."""
        return f"{'equal' if self.equal else 'unequal'} buckets, task {'told' if self.hint else 'not told'}"


PRINTED = (
    Printed(False, True, 79.15, 73.0),
    Printed(False, False, 5.5, 9.3),
    Printed(True, True, 68.23, 65.0),
    Printed(True, False, 9.3, 5.5),
)

PRINTED_BY_TASK = {"translation": 93.10, "sentiment": 79.92, "qa_context": 65.27, "qa_open": 70.36, "ner": 95.06}
"""Unequal buckets, task told (its Table 1)."""


def run(context: Context) -> Findings:
    """Measures the shipped predictor on the prompts that are given, or says what it was measured at when it was made."""
    command = context.command(PART.letter)
    measured = None
    if context.prompts:
        context.report(f"the shipped predictor on {', '.join(path.name for path in context.prompts)}")
        measured = _measured(context)
    tables = [_printed_table(command) if measured is None else _four_rows(measured, command)]
    tables += [_recorded_table(command), _majority_table(command)]
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
        "behind the prompt; its text and its slides print different numbers, and neither its prompts nor the lengths of "
        "the answers are public. Ours is the predictor that ships with jaxroute, two layers of 64 units."
    )
    if measured is None:
        return (general, "No prompts with answers were given (`--prompts FILE`), so nothing is measured here.")
    rows = max(row["n"] for row in measured["rows"])
    return (
        general,
        f"Measured on {rows:,} test rows of the prompts that were given; buckets are fitted on their {measured['train']:,} "
        "training rows, as are the baselines. The predictor was trained on five buckets as frequent as each other; the "
        "probabilities of the paper's wide buckets are sums of theirs. Intervals are Wilson's, over rows.",
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
            found.append(Row(f"{printed.name}; {name}", cells))
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


def light_or_heavy(heavy: float) -> float:
    """Share that naming the commoner of two classes gets right."""
    return max(heavy, 1 - heavy)


def majority_by_task() -> float:
    """Of the paper's data: share that naming the commoner class of each task gets right."""
    samples = sum(task.samples for task in TASKS)
    return sum(task.samples * light_or_heavy(task.long_share) for task in TASKS) / samples


def heavy_share() -> float:
    """Of the paper's data: share of heavy decodes."""
    return sum(task.samples * task.long_share for task in TASKS) / sum(task.samples for task in TASKS)


def _majority_table(command: str) -> Table:
    """What the paper's Table 1 says of itself: no measurement of ours."""
    rows = [
        Row(
            task.name,
            (
                Cell(text=f"{task.samples:,}"),
                Cell(text=f"{100 * task.long_share:.2f}"),
                Cell(text=f"{100 * light_or_heavy(task.long_share):.2f}"),
                Cell(text=f"{PRINTED_BY_TASK[task.name]:.2f}"),
            ),
        )
        for task in TASKS
    ]
    total = sum(task.samples for task in TASKS)
    rows.append(
        Row(
            "all",
            (
                Cell(text=f"{total:,}"),
                Cell(text=f"{100 * heavy_share():.2f}"),
                Cell(text=f"{100 * majority_by_task():.2f}"),
                Cell(text=f"{PRINTED[0].text:.2f}"),
            ),
        )
    )
    return Table(
        title="The row that the paper lacks, from its own Table 1",
        columns=("task", "samples", "heavy decodes, %", "commoner of light and heavy, %", "printed accuracy, %"),
        rows=tuple(rows),
        command=command,
        seeds="printed numbers and arithmetic",
        note="A heavy decode takes 5 s or more, about 250 tokens, where the second of the unequal buckets begins.",
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
    found = []
    first = measured["first_bucket"]
    found.append(
        f"Nothing here can be held against the printed numbers as it stands: {100 * first['unequal']:.0f} % of the answers "
        f"at hand are in the first unequal bucket and {100 * first['equal']:.0f} % in the first equal one, of the paper's "
        f"about {100 * (1 - heavy_share()):.0f} %."
    )
    for equal in (False, True):
        told, untold = (_row_of(measured, each, "all") for each in PRINTED if each.equal == equal)
        if told is not None and untold is not None:
            kind = "equal" if equal else "unequal"
            printed = [each.text for each in PRINTED if each.equal == equal]
            gain = 100 * (told["top1"] - told["majority"])
            found.append(
                f"On {kind} buckets the predictor is right {gain:+.1f} points more often than the most common bucket, and "
                f"telling it the task changes {100 * (told['top1'] - untold['top1']):+.1f} points; printed: "
                f"{printed[0] - printed[1]:+.1f}. The wording of a prompt gives its task away, so its absence cannot cost "
                "that much."
            )
    return tuple(found)


def majority_remarks() -> tuple[str, ...]:
    """What the paper's own numbers say of each other."""
    light, by_task = 100 * light_or_heavy(heavy_share()), 100 * majority_by_task()
    commoner = [100 * light_or_heavy(task.long_share) for task in TASKS]
    accuracy = [PRINTED_BY_TASK[task.name] for task in TASKS]
    correlation = float(np.corrcoef(commoner, accuracy)[0, 1])
    untold = [each.text for each in PRINTED if not each.hint]
    return (
        f"From the paper's Table 1: naming always the commoner class is right in {light:.1f} % of its prompts, that of the "
        f"task in {by_task:.1f} %; its equal buckets with the task have {PRINTED[2].text:g} %, its unequal ones "
        f"{PRINTED[0].text - by_task:+.1f} points more. By task its accuracy goes with how lopsided the task is "
        f"(correlation {correlation:.2f}).",
        f"Without the task it prints {untold[0]:g} and {untold[1]:g} %, a tenth of what a constant gets; text and slides "
        "have these two swapped. A predictor that knows nothing cannot be so wrong, so these figures are likely of labels "
        "that do not belong to the buckets (such as one class for each length).",
    )


PART = Part(
    letter="b",
    name="prediction",
    title="Prediction of output lengths",
    paper="section 5.1 and Table 1; slides",
    run=run,
)
