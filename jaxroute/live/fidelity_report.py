"""Comparisons of the simulator with real servers -> table, JSON and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute.live.agreement import QUANTITIES, STATISTICS
from jaxroute.live.cluster import HeldSteps
from jaxroute.live.fidelity import Comparison, Measured
from jaxroute.live.files import write_json
from jaxroute.live.frontend import FrontEnd
from jaxroute.live.picture import fidelity_picture
from jaxroute.output import write_requests_csv
from jaxroute.plots import save
from jaxroute.profiles import StepProfile
from jaxroute.testbed.trace import MOST_OVERRUN_SHARE

TARGETS = {("e2e", "mean"): 0.5, ("e2e", "p99"): 1.0, ("ttft", "mean"): 3.0, ("tbt", "mean"): 2.0}
"""Errors up to which the simulator counts as right, %."""

PREEMPTIONS_TARGET = 3.0

WRONG_STYLE, RIGHT_STYLE = "bold red", "green"


@dataclasses.dataclass(frozen=True)
class Servers:
    """The servers that comparisons were made on, for the JSON file.

    Attributes:
      scheduler: of theirs.
      profile: how fast they are, `frontend_ms` as measured at moderate load.
      frontend: what was measured on them when they were idle.
    """

    scheduler: str
    profile: StepProfile
    frontend: FrontEnd


def error_table(comparisons: Sequence[Comparison]) -> Group:
    """A table for each case: a row for every live run, and one of how far its repeats are from each other.

    Errors above their target are red; below the tables stands why a run is not valid.
    """
    cases = dict.fromkeys(each.case.name for each in comparisons)
    tables = [_case_table(name, [each for each in comparisons if each.case.name == name]) for name in cases]
    faults = [
        Text(f"not valid: {each.case.name} {each.simulated.policy} run {number + 1}: {fault}", style=WRONG_STYLE)
        for each in comparisons
        for number, run in enumerate(each.measured)
        for fault in run.faults
    ]
    return Group(*tables, *faults)


def _case_table(name: str, comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    table.title = f"{name}: simulated against live, error in %"
    table.add_column("\npolicy", overflow="fold")
    table.add_column("\nrun", no_wrap=True)
    heads = ["E2E\nlive s", "E2E\nmean", "E2E\np50", "E2E\np99", "TTFT\nmean", "TTFT\np99", "TBT\nmean", "TBT\np99"]
    heads += ["E2E each\np50 / p95", "preemptions\nlive / sim", "pre-\nempt.", "overrun %\n/ stall ms"]
    for header in heads:
        table.add_column(header, justify="right", no_wrap=True)
    for comparison in comparisons:
        for number in range(len(comparison.measured)):
            table.add_row(*_run_row(comparison, number))
        if comparison.noise_percent:
            table.add_row(*_noise_row(comparison))
    return table


def _run_row(comparison: Comparison, number: int) -> list[str | Text]:
    made, run = comparison.differences[number], comparison.measured[number]
    preemptions = comparison.preemptions[number]
    e2e = made["e2e"]
    overrun = "-" if run.held is None else f"{100 * run.held.overrun_share:.2f} / {run.held.longest_stall_ms:.0f}"
    return [
        comparison.simulated.policy,
        f"{number + 1}" + ("" if not run.faults else " !"),
        f"{e2e.live_s['mean']:.3f}",
        *(_error(made[quantity].error_percent[stat], TARGETS.get((quantity, stat))) for quantity, stat in _SHOWN),
        f"{e2e.scatter_p50_percent:.2f} / {e2e.scatter_p95_percent:.2f}",
        f"{sum(preemptions.live)} / {sum(preemptions.simulated)}",
        _error(preemptions.error_percent, PREEMPTIONS_TARGET),
        overrun,
    ]


def _noise_row(comparison: Comparison) -> list[str | Text]:
    noise = comparison.noise_percent
    spread = comparison.noise_preemptions_percent
    cells = [f"{noise[quantity][stat]:.2f}" for quantity, stat in _SHOWN]
    texts = ["", "live", "", *cells, "", "", "-" if spread is None else f"{spread:.2f}", ""]
    return [Text(text, style="dim") for text in texts]


_SHOWN = (
    ("e2e", "mean"),
    ("e2e", "p50"),
    ("e2e", "p99"),
    ("ttft", "mean"),
    ("ttft", "p99"),
    ("tbt", "mean"),
    ("tbt", "p99"),
)


def _error(percent: float, target: float | None) -> Text:
    if math.isnan(percent):
        return Text("-")
    style = "" if target is None else WRONG_STYLE if abs(percent) > target else RIGHT_STYLE
    return Text(f"{percent:+.2f}", style=style)


def fidelity_json(
    servers: Sequence[Servers], comparisons: Sequence[Comparison], settings: Mapping[str, object]
) -> dict[str, object]:
    """All of it: settings, servers, targets, and a row for every live run."""
    targets = {f"{quantity}_{stat}_percent": value for (quantity, stat), value in TARGETS.items()}
    return {
        "settings": settings,
        "servers": [dataclasses.asdict(each) for each in servers],
        "targets": {**targets, "preemptions_percent": PREEMPTIONS_TARGET, "most_overrun_share": MOST_OVERRUN_SHARE},
        "runs": [row for each in comparisons for row in _rows(each)],
        "noise": [_noise(each) for each in comparisons if each.noise_percent],
    }


def _key(comparison: Comparison) -> dict[str, object]:
    case = comparison.case
    return {
        "case": case.name,
        "scheduler": case.scheduler,
        "workload": case.workload,
        "load": case.load,
        "rate_per_s": case.rate_per_s,
        "requests": len(case.table),
        "policy": comparison.simulated.policy,
    }


def _rows(comparison: Comparison) -> list[dict[str, object]]:
    rows = []
    for number, run in enumerate(comparison.measured):
        preemptions = comparison.preemptions[number]
        row: dict[str, object] = {
            **_key(comparison),
            "run": number + 1,
            **validity(run),
            **{name: dataclasses.asdict(comparison.differences[number][name]) for name in QUANTITIES},
            "preemptions": {
                "live": preemptions.live,
                "simulated": preemptions.simulated,
                "error_percent": preemptions.error_percent,
            },
        }
        rows.append(row)
    return rows


def validity(run: Measured) -> dict[str, object]:
    """What says how far a live run is to be trusted, for a JSON file."""
    unknown = dict.fromkeys(field.name for field in dataclasses.fields(HeldSteps))
    return {
        "valid": not run.faults,
        "faults": run.faults,
        **(unknown if run.held is None else dataclasses.asdict(run.held)),
        "origin_s": run.run.origin,
        "late_p99_ms": 1e3 * float(np.percentile(run.run.late_s, 99)),
    }


def _noise(comparison: Comparison) -> dict[str, object]:
    noise = {name: {stat: comparison.noise_percent[name][stat] for stat in STATISTICS} for name in QUANTITIES}
    return {**_key(comparison), "percent": {**noise, "preemptions": comparison.noise_preemptions_percent}}


def write_fidelity(
    folder: Path,
    servers: Sequence[Servers],
    comparisons: Sequence[Comparison],
    new: Sequence[Comparison],
    settings: Mapping[str, object],
) -> None:
    """Writes `fidelity.json` of all, and for each new case and policy the requests of every run and a picture.

    Raises:
      OSError: the folder cannot be written.
    """
    for each in new:
        own = folder / each.case.name
        own.mkdir(parents=True, exist_ok=True)
        name = each.simulated.policy
        write_requests_csv(each.simulated, own / f"{name}.simulated.requests.csv")
        for number, run in enumerate(each.measured):
            write_requests_csv(run.run.result, own / f"{name}.live-{number + 1}.requests.csv")
        save(fidelity_picture(each), own / f"{name}.png")
    write_json(fidelity_json(servers, comparisons, settings), folder / "fidelity.json")
