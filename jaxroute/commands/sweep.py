"""`jaxroute sweep`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.commands.run_options import Overrides, RunOptions, stopped
from jaxroute.errors import InputError, first_line

if TYPE_CHECKING:
    from jaxroute.sweep.plan import Plan
    from jaxroute.sweep.space import Axis
    from jaxroute.sweep.standings import Standing

COMMAND = "jaxroute sweep"

Over = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(name="over", metavar="KEY=A,B,... ...")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(RunOptions):
    """Train once for each of many values of a configuration's keys: seeds, rewards, learning rates (Ray Tune).

    Every trial is a training run in RUN/runs, with all that `jaxroute train` writes. Results go to RUN/results.csv and
    results.json. Ctrl-C lets the trials save themselves; --resume goes on with those that had not ended. A trial that
    fails is reported and does not end the others. Needs `pip install 'jaxroute[sweep]'`.
    """

    overrides: Overrides = ()
    """Values in place of the configuration's, the same for all trials; may be repeated."""
    over: Over = ()
    """Keys to go over: seed=0,1,2 or, with --samples, a range: ppo.learning_rate=log(1e-4,1e-2), uniform(A,B),
    int(A,B)."""
    space: Annotated[Path | None, tyro.conf.arg(metavar="TOML")] = None
    """File with more keys to go over, in a table [over]: lists, or {log = [1e-4, 1e-2]}."""
    search: Literal["grid", "random"] = "grid"
    """grid: all combinations of the values; random: each drawn for itself."""
    samples: int | None = None
    """Times that the grid is gone through (ranges are drawn anew); under random, the number of trials."""
    random_state: int = 0
    """Of the draws."""
    asha: bool = False
    """Stop trials early that are behind the others after as many validations."""
    grace: int = 4
    """Validations that ASHA leaves to every trial; a run has about 20 for each of its stages."""
    reduction: int = 2
    """Of the trials at a rung of ASHA, one in so many goes on; the next rung is so many times further."""
    parallel: int = 1
    """Most trials at once."""
    cpus: int | None = None
    """Cores of each trial, and on CPU its devices; by default all of them, shared by --parallel."""
    gpus: int = 0
    """GPUs of each trial; without any, trials run on the CPU."""
    address: str | None = None
    """Address of a running Ray cluster that shares the folder; by default Ray runs on this machine."""
    retry_failed: bool = False
    """With --resume: trials that failed go on from their last checkpoints, too."""

    def run(self) -> None:
        """Runs it; exits with 130 where it was interrupted."""
        self.check()
        from jaxroute.sweep.plan import read_plan

        console = table_console()
        folder = self.resume or self.out
        assert folder is not None
        if self.resume is None:
            axes, plan = self._checked(folder)
        else:
            read_plan(folder)
        try:
            from jaxroute.sweep import tuning
        except ImportError as error:
            need = "jaxroute sweep needs Ray Tune; install it: pip install 'jaxroute[sweep]'"
            raise InputError(f"{need} ({first_line(error)})") from error
        if self.resume is None:
            self._begin(folder)
        with _told(console):
            if self.resume is None:
                standings = tuning.start(axes, plan, folder)
            else:
                standings = tuning.resume(folder, retry_failed=self.retry_failed)
        self._end(standings, folder, console)

    def _checked(self, out: Path) -> tuple[list[Axis], Plan]:
        """What to go over, and how."""
        from jaxroute.sweep.plan import SETTINGS
        from jaxroute.sweep.space import Range, check_axes, parse_over, read_space

        assert self.config is not None
        axes = [parse_over(text) for group in self.over for text in group]
        axes += [] if self.space is None else read_space(self.space)
        check_axes(axes, self.config, self.values)
        ranges = [axis.key for axis in axes if isinstance(axis, Range)]
        if self.samples is None and (self.search == "random" or ranges):
            what = f"{ranges[0]} is a range" if ranges else "--search random"
            raise InputError(f"{what}: give --samples, how often to draw")
        plan = self._plan()
        if (out / SETTINGS).exists():
            raise InputError(f"--out {out}: holds a sweep; go on with it by --resume {out}, or give a new folder")
        return axes, plan

    def _begin(self, out: Path) -> None:
        """Makes the folder, with the configuration that all trials start from."""
        from jaxroute.output import atomic_path
        from jaxroute.sweep.plan import BASE
        from jaxroute.train.load_config import load_config, to_toml

        assert self.config is not None
        base = load_config(self.config, self.values)
        try:
            out.mkdir(parents=True, exist_ok=True)
            with atomic_path(out / BASE) as temporary:
                temporary.write_text(to_toml(base), encoding="utf-8")
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error}); choose another folder") from error

    def _plan(self) -> Plan:
        from jaxroute.sweep.plan import Asha, Plan

        least = {"samples": 1, "grace": 1, "reduction": 2, "parallel": 1, "cpus": 1, "gpus": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"--{name} is {value}, must be at least {smallest}")
        cores = len(os.sched_getaffinity(0))
        return Plan(
            search=self.search,
            samples=self.samples or 1,
            random_state=self.random_state,
            asha=Asha(self.grace, self.reduction) if self.asha else None,
            parallel=self.parallel,
            cpus=self.cpus or max(1, cores // self.parallel),
            gpus=self.gpus,
            address=self.address,
        )

    def _end(self, standings: list[Standing], folder: Path, console: Console) -> None:
        """Writes and shows what came of it."""
        from jaxroute.sweep.plan import SETTINGS
        from jaxroute.sweep.standings import RESULTS_CSV, RUNS, best_of, over_seeds, write_standings

        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            write_standings(standings, settings, folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error}); make room or check its permissions") from error
        console.print(_table(standings))
        if means := over_seeds(standings):
            table = Table(title="over seeds, % against round robin", title_justify="left")
            for heading in (*means[0].over, "seeds", "score", "mean E2E", "least to most"):
                table.add_column(heading)
            for group in means:
                mean, least, most = group.e2e_mean
                spread = f"[{_percent(least)}, {_percent(most)}]"
                table.add_row(*group.over.values(), str(group.seeds), _percent(group.score), _percent(mean), spread)
            console.print(table)
        for each in standings:
            if each.status == "failed":
                console.print(f"{each.name} failed: {each.problem}", soft_wrap=True, markup=False)
        if any(each.status == "unfinished" for each in standings):
            stopped(COMMAND, folder, console)
        if (best := best_of(standings)) is not None and best.progress.best is not None:
            console.print(f"best: {folder / RUNS / best.name}: {best.progress.best.text}", soft_wrap=True)
        console.print(f"written to {folder}; all figures: {folder / RESULTS_CSV}", soft_wrap=True)
        if all(each.status == "failed" for each in standings):
            raise InputError(f"{folder}: every trial failed; the reasons are above")


@contextlib.contextmanager
def _told(console: Console) -> Iterator[None]:
    """Shows what the sweep logs."""
    handler = RichHandler(console=console, show_path=False, show_level=False)
    logger = logging.getLogger("jaxroute.sweep")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _table(standings: list[Standing]) -> Table:
    keys = list(dict.fromkeys(key for each in standings for key in each.over))
    table = Table(title="trials, best policy of each by validation, % against round robin", title_justify="left")
    for heading in ("trial", *keys, "status"):
        table.add_column(heading)
    for heading in ("score", "mean E2E", "p99 E2E", "p99 TTFT", "steps", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in sorted(standings, key=lambda each: (math.isnan(each.score), each.score)):
        best: Any = each.progress.best
        figures = [math.nan] * 3 if best is None else [best.e2e_mean, best.e2e_p99, best.ttft_p99]
        table.add_row(
            each.name.split("-", 1)[0],
            *(each.over.get(key, "") for key in keys),
            each.status,
            *(_percent(value) for value in (each.score, *figures)),
            f"{each.progress.env_steps:,}",
            f"{each.progress.seconds:.0f}",
        )
    return table


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"
