"""`jaxroute predictor evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from jaxroute.commands.console import table_console
from jaxroute.commands.options import check_folder
from jaxroute.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a length predictor on held-out prompts, beside the baselines that it has to beat.

    Top-1 accuracy, macro-F1, off-by-one accuracy, expected calibration error and mean absolute error in tokens; with
    and without the task in the prompt, on the predictor's own buckets and on the paper's unequal and equal ones, on all
    rows and on those that a real LLM answered, by task. Writes DIR/evaluation.json, evaluation.csv and confusion.png.
    """

    data: tuple[Path, ...]
    """JSON lines (may be gzip) with prompt, output_tokens, task and split; its training rows are for the baselines."""
    out: Path
    """Folder to write to."""
    model: str = "default"
    """default (the shipped one), a folder that `jaxroute predictor train` wrote, or its run."""
    split: Literal["test", "val"] = "test"
    """Rows to measure on; choose anything by val only."""
    linear: bool = True
    """Fit the linear baseline, which takes a minute or so."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.predictor.evaluation import UNCOMPARABLE, evaluate
        from jaxroute.predictor.folder import find_predictor, read_predictor
        from jaxroute.predictor.prompts import read_prompts
        from jaxroute.predictor.report import four_rows_table, task_table, write_evaluation

        check_folder(self.out)
        run = Path(self.model) / "predictor"
        file = read_predictor(run if run.is_dir() else find_predictor(self.model))
        table = read_prompts(self.data)
        console = table_console()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("preparing", total=None)

            def report(what: str, done: int, total: int) -> None:
                progress.update(bar, description=what, completed=done, total=total)

            found = evaluate(file, table, split=self.split, linear=self.linear, progress=report)
        try:
            write_evaluation(self.out, found)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        console.print(four_rows_table(found))
        console.print(task_table(found))
        console.print(Text(UNCOMPARABLE, style="italic"))
        console.print(f"written to {self.out}", soft_wrap=True)
