"""`jaxroute train`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro
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
from jaxroute.errors import InputError

INTERRUPTED = 130


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Train a routing policy in the simulator: PPO, then evolution strategies, as the configuration says.

    Start a run with --config and --out, or go on with one that was stopped with --resume. The folder of a run holds
    config.toml, metrics.csv, TensorBoard event files, checkpoints/, policy/ (the best validated policy so far, for
    `simulate`, `evaluate` and `export`) and, at the end, learning_curve.png. Ctrl-C saves a checkpoint and stops.
    """

    config: str | None = None
    """TOML file, or the name of a shipped configuration."""
    overrides: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE ...")
    ] = ()
    """Values in place of the configuration's, such as ppo.learning_rate=3e-4 fleets.0.lanes=64; may be repeated."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder to write the run to."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run to go on with."""

    def run(self) -> None:
        """Runs it; exits with 130 where it was interrupted."""
        from jaxroute.train import run_folder
        from jaxroute.train.interrupt import stop_requests
        from jaxroute.train.load_config import load_config
        from jaxroute.train.loop import Training

        self._check()
        console = table_console()
        if self.resume is not None:
            out, config = self.resume, run_folder.config_of(self.resume)
        else:
            assert self.config is not None and self.out is not None
            out = self.out
            run_folder.check_new(out)
            config = load_config(self.config, [each for group in self.overrides for each in group])
        with stop_requests() as stop, _bar(console) as bar:
            training = Training(config, out, bar)
            if self.resume is None:
                run_folder.begin(out, config)
            try:
                finished = training.run(stop)
            except KeyboardInterrupt:
                console.print(f"stopped at once; go on from the last checkpoint: jaxroute train --resume {out}")
                sys.exit(INTERRUPTED)
            except OSError as error:
                raise InputError(f"{out}: cannot be written ({error}); make room or check its permissions") from error
        if not finished:
            console.print(f"stopped and saved; go on with: jaxroute train --resume {out}", soft_wrap=True)
            sys.exit(INTERRUPTED)
        if (best := training.best) is not None and best.figures is not None:
            console.print(f"best: {best.stage} {best.update}, {best.figures.text}")
        console.print(f"written to {out}; its policy: {out / 'policy'}", soft_wrap=True)

    def _check(self) -> None:
        if self.resume is None and (self.config is None or self.out is None):
            raise InputError("give --config and --out to start a run, or --resume to go on with one")
        if self.resume is not None and (self.config is not None or self.out is not None or self.overrides):
            raise InputError("--resume goes on with the run as it was begun; it takes no --config, --set or --out")


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
