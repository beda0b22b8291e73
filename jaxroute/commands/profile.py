"""`jaxroute profile`."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from jaxroute.commands.console import progress_bar, table_console
from jaxroute.errors import InputError, first_line

if TYPE_CHECKING:
    from jaxroute.profiling.result import Result
    from jaxroute.profiling.run import Facts, Target
    from jaxroute.profiling.steps import Step


@dataclasses.dataclass(frozen=True)
class Profile:
    """Measure a live vLLM server through its public API, and write the step-time profile that `simulate` runs on.

    The server must be idle. Writes FILE.json, and FILE.raw.csv with every measured step, which is kept whatever happens
    and can be fitted anew with --refit.
    """

    url: Annotated[str | None, tyro.conf.Positional] = None
    """Address of the server, such as http://127.0.0.1:8000."""
    out: Path | None = None
    """JSON file to write."""
    refit: Path | None = None
    """Fit the steps of a raw file anew, without a server."""
    model: str | None = None
    """Model to ask for; by default the only one that the server lists."""
    api_key_env: str | None = None
    """Environment variable that holds the server's API key."""
    scheduler: Literal["chunked", "whole-prompt"] = "chunked"
    """Whether the server computes prompts in chunks, as vLLM does unless told otherwise."""
    max_num_seqs: int | None = None
    """As the server was started with; it does not tell."""
    max_num_batched_tokens: int | None = None
    """As the server was started with; it does not tell."""
    num_gpu_blocks: int | None = None
    """KV blocks, where the server does not state them in its metrics."""
    block_size: int | None = None
    """Tokens of a KV block, likewise."""
    budget: Literal["quick", "full"] = "full"
    """How much to measure: minutes, or about one."""
    name: str | None = None
    """Name of the profile; by default that of the file."""
    hardware: str = "not stated"
    """Hardware of the server, for the profile."""

    def run(self) -> None:
        """Runs it."""
        try:
            from jaxroute.profiling.run import measure
        except ModuleNotFoundError as error:
            raise InputError(f"jaxroute profile needs {error.name}: pip install 'jaxroute[serve]'") from error
        console = table_console()
        out = self._checked_out()
        if self.refit is not None:
            facts, steps = _read(self.refit)
            self._finish(facts, steps, (), out, f"steps of {self.refit.name}, fitted anew", console)
            return
        target, raw = self._target(), out.with_suffix(".raw.csv")
        begin, begin_ns = time.monotonic(), time.time_ns()
        try:
            with progress_bar(console, "measuring") as report:
                warnings = measure(target, raw, datetime.date.today().isoformat(), report)
        except OSError as error:
            raise InputError(f"{raw}: cannot be written ({first_line(error)}); check the folder") from error
        except InputError as error:
            raise InputError(f"{error}{_kept(raw, begin_ns)}") from error
        except KeyboardInterrupt:
            Console(stderr=True).print(f"jaxroute: interrupted{_kept(raw, begin_ns) or '; nothing was written'}")
            sys.exit(130)
        facts, steps = _read(raw)
        source = f"jaxroute profile --budget {self.budget}, {facts.scheduler}, {len(steps):,} steps"
        console.print(f"{len(steps):,} steps in {time.monotonic() - begin:.0f} s, kept in {raw}")
        self._finish(facts, steps, warnings, out, source, console)

    def _finish(
        self, facts: Facts, steps: list[Step], warnings: tuple[str, ...], out: Path, source: str, console: Console
    ) -> None:
        from jaxroute.profiling.result import make_result, write_profile

        result = make_result(
            facts, steps, name=self.name or out.stem, hardware=self.hardware, source=source, warnings=warnings
        )
        try:
            write_profile(result.profile, out)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({first_line(error)}); check the folder") from error
        _show(result, console)
        console.print(f"profile written to {out}")

    def _checked_out(self) -> Path:
        if (self.url is None) == (self.refit is None):
            raise InputError("give the address of a server, or --refit RAW.csv, and not both")
        if self.out is None:
            raise InputError("--out is missing; give the JSON file to write")
        if self.out.suffix != ".json":
            raise InputError(f"--out {self.out}: must end with .json")
        if self.out.is_dir() or not self.out.resolve().parent.is_dir():
            raise InputError(f"--out {self.out}: is a folder, or in none; give a file in a folder that exists")
        return self.out

    def _target(self) -> Target:
        from jaxroute.profiling.run import Target

        given = {name: getattr(self, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
        if missing := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]:
            raise InputError(f"{' and '.join(missing)}: a server does not tell; give what it was started with")
        for name in (*given, "num_gpu_blocks", "block_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}, must be at least 1")
        key = os.environ.get(self.api_key_env) if self.api_key_env is not None else None
        if self.api_key_env is not None and not key:
            raise InputError(f"--api-key-env {self.api_key_env}: there is no such variable in the environment")
        assert self.url is not None
        return Target(
            url=self.url,
            model=self.model,
            key=key,
            scheduler=self.scheduler,
            max_num_seqs=given["max_num_seqs"],
            max_num_batched_tokens=given["max_num_batched_tokens"],
            num_gpu_blocks=self.num_gpu_blocks,
            block_size=self.block_size,
            budget=self.budget,
        )


def _kept(raw: Path, since_ns: int) -> str:
    """Where to find what was measured before it ended, if anything was."""
    is_new = raw.exists() and raw.stat().st_mtime_ns >= since_ns
    return f"; the steps measured so far are in {raw}, see --refit" if is_new else ""


def _read(path: Path) -> tuple[Facts, list[Step]]:
    from jaxroute.profiling.run import facts_of
    from jaxroute.profiling.steps import read_raw

    data, steps = read_raw(path)
    return facts_of(data, path), steps


def _show(result: Result, console: Console) -> None:
    fit, profile = result.fit, result.profile
    table = Table(title=f"{profile.name}: {profile.model}, {profile.engine}")
    for heading in ("coefficient", "ms", "standard error"):
        table.add_column(heading, justify="left" if heading == "coefficient" else "right")
    for name, value in profile.coefficients_ms.items():
        table.add_row(name, f"{value:.4g}", f"{fit.standard_error_ms[name]:.1g}")
    table.add_row("frontend_ms", f"{profile.frontend_ms:.4g}", "")
    console.print(table)
    table = Table(title="error of step times that the fit did not see")
    for heading in ("regime", "steps", "median", "p90", "noise of it"):
        table.add_column(heading, justify="left" if heading == "regime" else "right")
    for error in result.errors:
        percents = (error.median_percent, error.p90_percent, error.noise_percent)
        table.add_row(error.regime, str(error.steps), *(f"{percent:.1f} %" for percent in percents))
    console.print(table)
    console.print(f"tokens are late by {result.noise:.1%} of a decode step (standard deviation)")
    for remark in fit.remarks:
        console.print(f"note: {remark}")
    for warning in result.warnings:
        console.print(f"warning: {warning}", style="yellow")
