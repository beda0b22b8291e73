"""`jaxroute predictor train`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from jaxroute.commands.console import table_console
from jaxroute.commands.run_options import Overrides, RunOptions, interruptible, stopped

COMMAND = "jaxroute predictor train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(RunOptions):
    """Train a length predictor on prompts with the lengths of their answers.

    Start a run with --config, --data and --out, or go on with one that was stopped with --resume. Rows of the split
    train are fitted, those of val choose the best epoch, those of test only measure what is written at the end. The
    folder of a run holds config.toml, data.txt, metrics.csv, TensorBoard event files, checkpoints/ and, at the end,
    predictor/, for `predict`, `evaluate` and `show`. Ctrl-C saves a checkpoint and stops.
    """

    data: tuple[Path, ...] = ()
    """JSON lines (may be gzip) with prompt, output_tokens, task and split; several files one behind the other."""
    overrides: Overrides = ()
    """Values in place of the configuration's, such as fit.learning_rate=3e-4; may be repeated."""

    def run(self) -> None:
        """Runs it; exits with 130 where it was interrupted."""
        from jaxroute.predictor.prompts import read_prompts
        from jaxroute.train import run_folder
        from jaxroute.train.interrupt import stop_requests
        from jaxroute.train.predictor import runs
        from jaxroute.train.predictor.load import load_predictor_config
        from jaxroute.train.predictor.training import PREDICTOR, PredictorTraining

        self.check(data=self.data)
        console = table_console()
        if self.resume is not None:
            out = self.resume
            config, files = runs.config_of(out), runs.data_of(out)
        else:
            assert self.config is not None and self.out is not None
            out, files = self.out, self.data
            run_folder.check_new(out)
            config = load_predictor_config(self.config, self.values)
        table = read_prompts(files)
        with stop_requests() as stop, _bar(console) as bar:
            training = PredictorTraining(config, table, out, bar)
            if self.resume is None:
                runs.begin(out, config, files)
            with interruptible(COMMAND, out, console):
                finished = training.run(stop)
        if not finished:
            stopped(COMMAND, out, console)
        epoch, figures = training.best
        if figures is not None:
            console.print(f"best: epoch {epoch}, validation top-1 {figures.top1:.3f}, LLM rows {figures.top1_llm:.3f}")
        console.print(f"written to {out}; its predictor: {out / PREDICTOR}", soft_wrap=True)


class _Bar:
    """A `Watcher` that moves a bar of rich."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def moved(self, epoch: int, done: int, total: int, loss: float) -> None:
        """See `Watcher.moved`."""
        self._progress.update(self._task, completed=done, total=total, epoch=f"epoch {epoch}", loss=f"loss {loss:.3f}")

    def said(self, text: str) -> None:
        """See `Watcher.said`."""
        self._progress.console.print(text, soft_wrap=True)


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[_Bar]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, progress.add_task("training", total=None, epoch="preparing", loss=""))
