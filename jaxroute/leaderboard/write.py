"""A leaderboard -> its files: Markdown, CSV, pictures, and one HTML page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jaxroute import plots
from jaxroute.leaderboard import pictures
from jaxroute.leaderboard.grid import Entry, Settings
from jaxroute.leaderboard.pages import Picture, Section, markdown, page
from jaxroute.leaderboard.standings import RANKED, Board
from jaxroute.leaderboard.tables import capacity_table, cell_table, overall_table, small_table
from jaxroute.output import csv_field, report_paths, write_rows
from jaxroute.paired import COMPARED, FEWEST_SEEDS
from jaxroute.slo import ATTAINMENT

TITLE = "jaxroute leaderboard"

CAPTIONS = {
    "standings.png": "Change of the mean E2E against round robin, %, policy by cell. Blue is better; the best policy "
    "over all cells is on top.",
    "goodput.png": "Share of the requests within the objective over load: the best policies and round robin.",
    "distance.png": "Mean E2E over load: the best policies, round robin, and what no router can go below (grey).",
    "small.png": "Small cases: how far each policy is above the best schedule that a clairvoyant search found.",
}


def write_leaderboard(folder: Path, board: Board, settings: Settings, notes: Sequence[str]) -> list[str]:
    """Writes all files into a folder; all are complete before the first is in place.

    Args:
      folder: made if it is not there.
      board: what is written.
      settings: it was measured by.
      notes: paragraphs on how it was measured.

    Returns:
      The names of the files.

    Raises:
      OSError: the folder cannot be made or written.
    """
    figures = _figures(board)
    sections = _sections(board, settings, notes, figures)
    rows = _csv_files(board)
    texts = {"leaderboard.md": markdown(TITLE, sections), "leaderboard.html": page(TITLE, sections)}
    names = [*texts, *rows, *figures]
    with report_paths(folder, *names) as paths:
        path_of = dict(zip(names, paths, strict=True))
        for name, text in texts.items():
            path_of[name].write_text(text, encoding="utf-8")
        for name, (header, body) in rows.items():
            write_rows(path_of[name], header, body)
        for name, figure in figures.items():
            plots.save(figure, path_of[name])
    return names


def _figures(board: Board) -> dict[str, Figure]:
    figures = {
        "standings.png": pictures.standings(board),
        "goodput.png": pictures.goodput(board),
        "distance.png": pictures.distance(board),
    }
    if board.measured.small:
        figures["small.png"] = pictures.small(board.measured.small, board.names)
    return figures


def _sections(board: Board, settings: Settings, notes: Sequence[str], figures: Mapping[str, Figure]) -> list[Section]:
    shown = {name: Picture(name, pictures.svg(figure), CAPTIONS[name]) for name, figure in figures.items()}
    seeds = len(settings.seeds)
    intervals = (
        "Intervals are 95 % bootstrap intervals over seeds; differences are paired, since every policy sees the same "
        "requests of a seed. Bold and coloured differences leave out 0."
        if seeds >= FEWEST_SEEDS
        else f"With fewer than {FEWEST_SEEDS} seeds no difference counts as significant."
    )
    slo = f"TTFT within {settings.slo.ttft_s:g} s and a mean TBT within {1e3 * settings.slo.tbt_s:g} ms"
    sections = [
        Section("Standings", [*notes, intervals], [shown["standings.png"]], [overall_table(board)]),
        Section(
            "Goodput",
            [f"A request is served well with a {slo}; goodput is the share of such requests."],
            [shown["goodput.png"]],
        ),
    ]
    if board.capacities:
        top = settings.capacity_levels[-1]
        text = (
            f"The highest load at which {100 * ATTAINMENT:g} % of the requests are served so, by bisection over "
            f"{len(settings.capacity_levels)} loads from {settings.capacity_levels[0]:g} to {top:g} with common seeds, "
            "each seed by itself; the mean over the seeds, 0 where the lowest load is too much. Coloured where the "
            "paired difference to round robin leaves out 0."
        )
        sections.append(Section("Highest load within the objective", [text], [], [capacity_table(board)]))
    sections.append(
        Section(
            "Distance to a bound",
            [
                "The bound is proven (jaxroute/bounds): no router that knows the future, holds requests, or routes by "
                "any other rule has a lower mean E2E on these requests, servers and schedulers. It is the greatest of "
                "three: each request alone on the fastest server; the work of all of them on one relaxed server that "
                "may preempt; and that followed by what a request still needs. How much of the distance can be had is "
                "not known: near and above capacity the bound is loose."
            ],
            [shown["distance.png"]],
        )
    )
    if board.measured.small:
        sections.append(_small_section(board, shown))
    cells = [cell_table(cell) for cell in board.cells]
    return [*sections, Section("Every cell", [], [], cells, folded=True)]


def _small_section(board: Board, shown: Mapping[str, Picture]) -> Section:
    cases = board.measured.small
    text = (
        f"Each case is {cases[0].requests} requests on the block's servers, cut down to four sequences each, at their "
        "capacity. The search knows all lengths and arrivals, starts from the schedules of the policies, and simulated "
        f"{cases[0].simulated:,} schedules exactly. What it found is possible, but maybe not the best."
    )
    table = small_table(cases, list(board.overall))
    return Section("Small cases, searched", [text], [shown["small.png"]], [table])


def _csv_files(board: Board) -> dict[str, tuple[Sequence[str], Iterable[Sequence[str]]]]:
    runs = tuple(field.name for field in dataclasses.fields(Entry))
    files: dict[str, tuple[Sequence[str], Iterable[Sequence[str]]]] = {
        "leaderboard.csv": _standings_rows(board),
        "runs.csv": (runs, [[csv_field(getattr(each, name)) for name in runs] for each in board.measured.entries]),
        "bounds.csv": _rows(board.measured.bounds),
    }
    if board.measured.capacities:
        files["slo-capacity.csv"] = _rows(board.measured.capacities)
    if board.measured.small:
        header = ("workload", "fleet", "scheduler", "seed", "requests", "bound_s", "found_s", "policy", "e2e_mean_s")
        rows = [
            [csv_field(getattr(case, name)) for name in header[:-2]] + [policy, csv_field(value)]
            for case in board.measured.small
            for policy, value in case.policies.items()
        ]
        files["small-cases.csv"] = (header, rows)
    return files


def _standings_rows(board: Board) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    """One row for each policy in each cell."""
    place = ("workload", "fleet", "scheduler", "load", "rate_per_s", "seeds", "best_heuristic", "bound_s")
    first = next(iter(board.cells[0].policies.values())).comparison
    means = [f"{column}{end}" for column in first.means for end in ("", "_low", "_high")]
    changes = [
        f"{column}_vs_{other}_percent{end}"
        for other in ("round_robin", "best_heuristic")
        for column in COMPARED
        for end in ("", "_low", "_high")
    ]
    header = ("policy", *place, *(f"rank_{name}" for name in RANKED), "above_bound_percent", *means, *changes)

    def rows() -> Iterable[Sequence[str]]:
        for cell in board.cells:
            for name, standing in cell.policies.items():
                compared = standing.comparison
                intervals = [*compared.means.values()]
                intervals += [compared.against_reference[column] for column in COMPARED]
                intervals += [compared.against_best[column] for column in COMPARED]
                own = [csv_field(getattr(cell, each)) for each in place]
                ranks = [csv_field(float(standing.ranks[each])) for each in RANKED]
                numbers = [csv_field(float(each)) for one in intervals for each in (one.value, one.low, one.high)]
                yield [name, *own, *ranks, csv_field(standing.above_bound_percent), *numbers]

    return header, rows()


def _rows(items: Sequence[object]) -> tuple[Sequence[str], Iterable[Sequence[str]]]:
    names = tuple(vars(items[0]))
    return names, [[csv_field(getattr(each, name)) for name in names] for each in items]
