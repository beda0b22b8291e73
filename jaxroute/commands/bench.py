"""`jaxroute bench`."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.commands.scaling import counts_of, show_scaling, title_of
from jaxroute.errors import InputError
from jaxroute.expectation import Links

if TYPE_CHECKING:
    from jaxroute.bench import Report, Row, Setting


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure the simulator on this machine: speed, compile time, memory, and the ratio to plain Python.

    Without sizes it runs a grid of them (2 to 3 minutes); any size given runs that one setting. With --devices it
    measures training instead, on one device and on more, with equally many environments on each (weak scaling).
    """

    json: bool = False
    """Print one JSON object instead of tables."""
    quick: bool = False
    """Only the main setting, with and without records."""
    scheduler: str | None = None
    """Scheduler of every instance: prefill-first, chunked or whole-prompt."""
    instances: int | None = None
    """I, instances of the fleet."""
    slots: int | None = None
    """S, most sequences that an instance runs at once."""
    envs: int | None = None
    """E, environments side by side; a multiple of the number of devices, or fewer. With --devices: of each device."""
    profile: str | None = None
    """Profile of every instance, by name or file."""
    seed: int = 0
    """Seed of the workloads."""
    repeats: int = 3
    """Timed runs of each setting; the best counts."""
    devices: str | None = None
    """Numbers of devices to train on, with commas, such as 1,2,4,8; on CPU they share its cores."""
    config: str = "five-task"
    """Training configuration for --devices."""
    update_ms: float | None = None
    """For --devices: time of an update on one GPU, measured elsewhere, that the expectation starts from."""
    links: Links = dataclasses.field(default_factory=Links)
    """For --devices: what the expectation assumes of the links between GPUs."""

    def run(self) -> None:
        """Runs it."""
        if self.repeats < 1:
            raise InputError(f"--repeats is {self.repeats}, must be at least 1")
        if self.devices is not None:
            self._scale(counts_of(self.devices))
            return
        # Imported late: the other commands do without jax.
        from jaxroute.bench import Row, run_bench

        report = None
        console = Console(stderr=True) if self.json else table_console()
        with console.status("measuring"):
            for result in run_bench(self._settings(), seed=self.seed, repeats=self.repeats):
                if isinstance(result, Row):
                    console.log(f"{_title(result)}: {result.env_steps_per_s:,.0f} env-steps/s")
                else:
                    report = result
        if report is None:
            return
        if self.json:
            print(json.dumps(dataclasses.asdict(report), indent=2))
        else:
            _show(report, console)

    def _scale(self, devices: list[int]) -> None:
        from jaxroute.scaling import Point, ScalingReport, run_scaling

        for name, value in vars(self.links).items():
            if value <= 0:
                raise InputError(f"--links.{name.replace('_', '-')} is {value}, must be above 0")
        for option, number in (("--envs", self.envs), ("--update-ms", self.update_ms)):
            if number is not None and number <= 0:
                raise InputError(f"{option} is {number}, must be above 0")
        console = Console(stderr=True) if self.json else table_console()
        update_s = None if self.update_ms is None else self.update_ms / 1e3
        runs = run_scaling(
            self.config, devices, envs=self.envs, repeats=self.repeats, links=self.links, update_s=update_s
        )
        with console.status("measuring"):
            for result in runs:
                if isinstance(result, Point):
                    console.log(title_of(result))
        assert isinstance(result, ScalingReport)
        if self.json:
            print(json.dumps(dataclasses.asdict(result), indent=2))
        else:
            show_scaling(result, console)

    def _settings(self) -> tuple[Setting, ...]:
        from jaxroute.bench import FULL, QUICK, Setting

        names = ("scheduler", "instances", "slots", "envs", "profile")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not given:
            return QUICK if self.quick else FULL
        for name in ("instances", "slots", "envs"):
            if given.get(name, 1) < 1:
                raise InputError(f"--{name} is {given[name]}, must be at least 1")
        if "instances" in given:
            given["rate"] = 5.0 * min(given["instances"], 9)
        return (Setting(**given), Setting(records=True, **given))


def _title(row: Row) -> str:
    records = ", records" if row.records else ""
    return f"{row.profile}, {row.scheduler}, I={row.instances}, S={row.slots}, E={row.envs}{records}"


def _show(report: Report, console: Console) -> None:
    table = Table(title=f"jaxroute bench: {report.devices} x {report.device}, round robin in the loop, five-task")
    for heading in ("profile", "scheduler", "I", "S", "E", "records"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "env-steps\n/s",
        "requests\n/s",
        "requests\n/CPU-s",
        "compile\ns",
        "KiB\n/env",
        "bytes\n/step",
        "of\nmemory",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.profile,
            row.scheduler,
            str(row.instances),
            str(row.slots),
            str(row.envs),
            "yes" if row.records else "no",
            f"{row.env_steps_per_s:,.0f}",
            f"{row.requests_per_s:,.0f}",
            f"{row.requests_per_cpu_s:,.0f}",
            f"{row.compile_s:.1f}",
            f"{row.memory_per_env_bytes / 1024:,.0f}",
            f"{row.bytes_per_env_step:,.0f}",
            f"{row.bandwidth_share:.0%}",
        )
    console.print(table)
    console.print(f"memory bandwidth, measured: {report.memory_bytes_per_s / 1e9:.1f} GB/s")
    if report.reference_requests_per_cpu_s is None:
        console.print("plain-Python reference: not here (it is in tests/ of a checkout)")
        return
    with_records = "" if report.ratio_with_records is None else f", {report.ratio_with_records:.0f} with records"
    console.print(
        f"plain-Python reference: {report.reference_requests_per_cpu_s:,.0f} requests/CPU-s; "
        f"ratio of the first row: {report.ratio:.0f}{with_records}"
    )
