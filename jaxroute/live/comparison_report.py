"""Contests of ways to live servers -> tables, JSON and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute.live.comparison import CLEAR_GAP_PERCENT, COLUMNS, RANKED_BY, Contest, Turn
from jaxroute.live.contest_picture import contest_picture
from jaxroute.live.fidelity_report import Servers, validity
from jaxroute.live.files import write_json
from jaxroute.output import write_requests_csv
from jaxroute.paired import Interval
from jaxroute.plots import save

BETTER_STYLE, WORSE_STYLE = "bold green", "red"

HEADS = {
    "e2e_mean_s": "E2E\nmean",
    "e2e_p99_s": "E2E\np99",
    "ttft_mean_s": "TTFT\nmean",
    "ttft_p99_s": "TTFT\np99",
    "tbt_mean_s": "TBT\nmean",
    "preemptions": "pre-\nemptions",
}


def contest_table(contest: Contest, reference: str) -> Group:
    """Three tables: what each way took, how it differs from the reference, and the pairs that the simulator ranks."""
    rounds = len(contest.live[reference][RANKED_BY])
    title = f"{contest.case.name}: {len(contest.case.table)} requests, {rounds} rounds"
    parts = [_means(contest, title), _differences(contest, reference)]
    if contest.simulated:
        parts.append(_pairs(contest))
    faults = [
        Text(f"not valid: {contest.case.name} round {turn.round + 1} {turn.way.name}: {fault}", style=WORSE_STYLE)
        for turn in contest.turns
        for fault in turn.measured.faults
    ]
    return Group(*parts, *faults)


def _means(contest: Contest, title: str) -> Table:
    table = _table(
        title, ["E2E s\nlive", "E2E s\nsimulated", "\nerror %", *list(HEADS.values())[1:-1], HEADS["preemptions"]]
    )
    for name, own in contest.live.items():
        live, simulated = float(own[RANKED_BY].mean()), contest.simulated.get(name)
        predicted = None if simulated is None else float(simulated[RANKED_BY].mean())
        table.add_row(
            name,
            f"{live:.3f}",
            "-" if predicted is None else f"{predicted:.3f}",
            "-" if predicted is None else f"{100 * (predicted / live - 1):+.1f}",
            *(f"{own[column].mean():.3f}" for column in ("e2e_p99_s", "ttft_mean_s", "ttft_p99_s")),
            f"{1e3 * own['tbt_mean_s'].mean():.1f} ms",
            f"{own['preemptions'].mean():.0f}",
        )
    return table


def _differences(contest: Contest, reference: str) -> Table:
    table = _table(f"% against {reference} (95 % interval)", list(HEADS.values())[:-1])
    for name, own in contest.against(reference).items():
        if name != reference:
            table.add_row(name, *(_difference(own[column]) for column in COLUMNS[:-1]))
    return table


def _pairs(contest: Contest) -> Table:
    pairs = contest.pairs
    right = sum(pair.agrees for pair in pairs)
    table = _table(
        f"ranking: {right} of {len(pairs)} pairs with a predicted gap above {CLEAR_GAP_PERCENT:g} % are so live",
        ["worse", "predicted %", "live %", "agrees"],
        first="better",
    )
    for pair in pairs:
        verdict = Text("yes", style=BETTER_STYLE) if pair.agrees else Text("no", style=WORSE_STYLE)
        table.add_row(
            pair.better, pair.worse, f"{pair.predicted_percent:+.1f}", _interval(pair.measured_percent), verdict
        )
    return table


def _table(title: str, heads: Sequence[str], first: str = "\nway") -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left", title=title)
    table.add_column(first, overflow="fold")
    for head in heads:
        table.add_column(head, justify="left" if head == "worse" else "right", no_wrap=True)
    return table


def _difference(interval: Interval) -> Text:
    style = "" if not interval.significant else WORSE_STYLE if interval.value > 0 else BETTER_STYLE
    return Text(_interval(interval), style=style)


def _interval(interval: Interval) -> str:
    if math.isnan(interval.low):
        return f"{interval.value:+.1f}"
    return f"{interval.value:+.1f} ({interval.low:+.1f}, {interval.high:+.1f})"


def comparison_json(
    servers: Sequence[Servers], contests: Sequence[Contest], reference: str, settings: Mapping[str, object]
) -> dict[str, object]:
    """All of it: settings, servers, and for each case every run, means, differences and ranked pairs."""
    return {
        "settings": settings,
        "servers": [dataclasses.asdict(each) for each in servers],
        "reference": reference,
        "contests": [_contest(each, reference) for each in contests],
    }


def _contest(contest: Contest, reference: str) -> dict[str, object]:
    case = contest.case
    return {
        "case": case.name,
        "scheduler": case.scheduler,
        "workload": case.workload,
        "load": case.load,
        "rate_per_s": case.rate_per_s,
        "requests": len(case.table),
        "runs": [_run(turn) for turn in contest.turns],
        "live": _intervals(contest.means),
        "against_reference_percent": _intervals(contest.against(reference)),
        "simulated": {name: {column: own[column] for column in COLUMNS} for name, own in contest.simulated.items()},
        "pairs": [{**dataclasses.asdict(pair), "agrees": pair.agrees} for pair in contest.pairs],
    }


def _intervals(made: Mapping[str, Mapping[str, Interval]]) -> dict[str, dict[str, object]]:
    return {name: {column: dataclasses.asdict(each) for column, each in own.items()} for name, own in made.items()}


def _run(turn: Turn) -> dict[str, object]:
    measured = turn.measured
    return {
        "way": turn.way.name,
        "round": turn.round + 1,
        **validity(measured),
        "preemptions_by_instance": measured.preemptions,
        **turn.numbers,
    }


def write_turn(folder: Path, case: str, turn: Turn) -> None:
    """Writes the requests of one run.

    Raises:
      OSError: the folder cannot be written.
    """
    own = folder / case
    own.mkdir(parents=True, exist_ok=True)
    name = turn.way.name.replace(":", "-").replace("/", "-")
    write_requests_csv(turn.measured.run.result, own / f"{name}.round-{turn.round + 1}.requests.csv")


def write_comparison(folder: Path, contest: Contest, content: Mapping[str, object]) -> None:
    """Writes `comparison.json` of all, and the picture of one contest.

    Raises:
      OSError: the folder cannot be written.
    """
    save(contest_picture(contest), folder / contest.case.name / "comparison.png")
    write_json(content, folder / "comparison.json")
