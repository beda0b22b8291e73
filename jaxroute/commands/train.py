"""`jaxroute train`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from importlib.metadata import version

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxroute.commands.console import table_console
from jaxroute.commands.join_options import JoinOptions
from jaxroute.commands.run_options import Overrides, RunOptions, interruptible, stopped

COMMAND = "jaxroute train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(RunOptions, JoinOptions):
    """Train a routing policy in the simulator: PPO, then evolution strategies, as the configuration says.

    Start a run with --config and --out, or go on with one that was stopped with --resume. The folder of a run holds
    config.toml, metrics.csv, TensorBoard event files, checkpoints/, policy/ (the best validated policy so far, for
    `simulate`, `evaluate` and `export`) and, at the end, learning_curve.png. Ctrl-C saves a checkpoint and stops.

    On several machines, start the same command on each with --coordinator, --processes and --process (or --distributed
    auto) and one shared folder: the lanes are spread over the devices of all.
    """

    overrides: Overrides = ()
    """Values in place of the configuration's, such as ppo.learning_rate=3e-4 fleets.0.lanes=64; may be repeated."""

    def run(self) -> None:
        """Runs it; exits with 130 where it was interrupted."""
        from jaxroute.train.distributed import joined

        self.check()
        with joined(self.join(), COMMAND):
            self._train()

    def _train(self) -> None:
        from jaxroute.train import run_folder
        from jaxroute.train.distributed import by_first, check_same, is_first
        from jaxroute.train.interrupt import stop_requests
        from jaxroute.train.load_config import load_config, to_toml
        from jaxroute.train.loop import Training

        if self.resume is not None:
            out, config = self.resume, run_folder.config_of(self.resume)
        else:
            assert self.config is not None and self.out is not None
            out = self.out
            by_first(lambda: run_folder.check_new(out))
            config = load_config(self.config, self.values)
        check_same("the configuration or the version of jaxroute", f"{to_toml(config)}{version('jaxroute')}".encode())
        console = table_console() if is_first() else Console(quiet=True)
        with stop_requests() as stop, _bar(console) as bar:
            training = Training(config, out, bar)
            if self.resume is None:
                by_first(lambda: run_folder.begin(out, config))
                run_folder.check_shared(out)
            with interruptible(COMMAND, out, console):
                finished = training.run(stop)
        if not finished:
            stopped(COMMAND, out, console)
        if (best := training.best) is not None and best.figures is not None:
            console.print(f"best: {best.stage} {best.update}, {best.figures.text}")
        console.print(f"written to {out}; its policy: {out / 'policy'}", soft_wrap=True)


class _Bar:
    """A `Watcher` that moves a bar of rich."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        """See `Watcher.moved`."""
        if self._progress.tasks[0].fields["stage"] != stage:
            self._progress.reset(self._task, stage=stage, gain="")
        self._progress.update(self._task, completed=done, total=total, gain=f"gain {100 * gain:+.1f} %")

    def said(self, text: str) -> None:
        """See `Watcher.said`."""
        self._progress.console.print(text, soft_wrap=True)


@contextlib.contextmanager
def _bar(console: Console) -> Iterator[_Bar]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[gain]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Bar(progress, progress.add_task("training", total=None, stage="preparing", gain=""))
