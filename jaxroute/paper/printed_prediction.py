"""What the paper prints of its length prediction, and what that says of itself: no measurement of ours."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.paper.part import Cell, Row, Table
from jaxroute.workload.five_task import TASKS


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


def majority_table(command: str) -> Table:
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


def majority_remarks() -> tuple[str, ...]:
    """What the paper's own numbers say of each other."""
    light, by_task = 100 * light_or_heavy(heavy_share()), 100 * majority_by_task()
    commoner = [100 * light_or_heavy(task.long_share) for task in TASKS]
    accuracy = [PRINTED_BY_TASK[task.name] for task in TASKS]
    correlation = float(np.corrcoef(commoner, accuracy)[0, 1])
    untold = [each.text for each in PRINTED if not each.hint]
    return (
        f"From the paper's Table 1: naming always the commoner class is right in {light:.1f} % of its prompts, that of "
        f"the task in {by_task:.1f} %; its equal buckets with the task have {PRINTED[2].text:g} %, its unequal ones "
        f"{PRINTED[0].text - by_task:+.1f} points more. By task its accuracy goes with how lopsided the task is "
        f"(correlation {correlation:.2f}).",
        f"Without the task it prints {untold[0]:g} and {untold[1]:g} %, a tenth of what a constant gets; its text and "
        "its slides have these two swapped. A predictor that knows nothing is not so wrong: these figures must count "
        "something else.",
    )
