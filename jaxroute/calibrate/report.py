"""A calibration -> tables for the terminal and the files of its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute.calibrate.fit import Fitted
from jaxroute.calibrate.log import RequestLog
from jaxroute.calibrate.picture import residual_picture
from jaxroute.calibrate.result import Calibration, Interval
from jaxroute.output import atomic_path, plain_json
from jaxroute.plots import save

NAMES = {"ttft": "TTFT", "e2e": "E2E", "tbt": "mean TBT"}


def write_calibration(
    folder: Path, log: RequestLog, fitted: Fitted, found: Calibration, settings: Mapping[str, object]
) -> None:
    """Writes `profile.json`, `fit.json` and `fit.png`; all are complete before the first is in place.

    Raises:
      OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(folder / "profile.json") as profile_file,
        atomic_path(folder / "fit.json") as fit_file,
        atomic_path(folder / "fit.png") as picture,
    ):
        profile_file.write_text(_text(dataclasses.asdict(found.profile)), encoding="utf-8")
        fit_file.write_text(_text(_content(log, fitted, found, settings)), encoding="utf-8")
        save(residual_picture(log, fitted, found), picture)


def calibration_tables(log: RequestLog, found: Calibration) -> Group:
    """Errors before and after, the coefficients, and the step times."""
    notes = [Text(f"{log.name}: {note}", style="yellow") for note in log.notes]
    errors = f"simulated against {found.held_out} requests that were held out (fitted: {found.requests}), error in %"
    known = "coefficients, ms; from log: the share of what is known of each that the log says, the rest says the start"
    titled = (
        (errors, _error_table(found)),
        (known, _coefficient_table(found)),
        ("engine steps, ms", _step_table(found)),
    )
    return Group(*notes, *(part for title, table in titled for part in (Text(title, style="italic"), table)))


def _error_table(found: Calibration) -> Table:
    table = _table()
    for heading in (
        "",
        "mean\nstart",
        "mean\nfitted",
        "each\nstart",
        "each\nfitted",
        "median\nstart",
        "median\nfitted",
    ):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for name, after in found.after.items():
        before = found.before[name]
        table.add_row(
            NAMES[name],
            f"{before.mean:+.1f}",
            f"{after.mean:+.1f}",
            f"{before.each:.1f}",
            f"{after.each:.1f}",
            f"{before.median:.1f}",
            f"{after.median:.1f}",
        )
    return table


def _coefficient_table(found: Calibration) -> Table:
    table = _table()
    for heading in ("", "start", "fitted", "95 % interval", "from log"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for each in found.coefficients:
        table.add_row(each.name, f"{each.start_ms:.4g}", *_interval(each.fitted_ms), f"{each.from_log:.0%}")
    return table


def _step_table(found: Calibration) -> Table:
    table = _table()
    for heading in ("", "start", "fitted", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for step in found.step_times:
        table.add_row(step.label, f"{step.start_ms:.4g}", *_interval(step.fitted_ms))
    return table


def _interval(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.4g}", f"[{interval.low:.4g}, {interval.high:.4g}]"


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)


def _content(log: RequestLog, fitted: Fitted, found: Calibration, settings: Mapping[str, object]) -> dict[str, object]:
    return {
        "settings": settings,
        "log": {"name": log.name, "servers": log.servers, "requests": len(log), "notes": log.notes},
        "fitted_requests": found.requests,
        "held_out_requests": found.held_out,
        "preemptions": found.preemptions,
        "error_percent": {
            "start": {name: dataclasses.asdict(error) for name, error in found.before.items()},
            "fitted": {name: dataclasses.asdict(error) for name, error in found.after.items()},
        },
        "coefficients": [dataclasses.asdict(each) for each in found.coefficients],
        "step_times": [dataclasses.asdict(each) for each in found.step_times],
        "losses_of_starts": fitted.losses,
        "loss_by_iteration": fitted.history,
        "simulations": fitted.evaluations,
    }


def _text(content: Mapping[str, object]) -> str:
    return json.dumps(plain_json(content), indent=2, allow_nan=False) + "\n"
