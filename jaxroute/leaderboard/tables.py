"""The leaderboard's tables: their texts once, for Markdown and for HTML."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from jaxroute.leaderboard.grid import SmallCase
from jaxroute.leaderboard.standings import Board, CellStandings, Overall, Standing
from jaxroute.metrics import REFERENCE_POLICY
from jaxroute.paired import Interval

ABSENT = "-"


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a table.

    Attributes:
      text: what is read.
      value: what it is sorted by; NaN goes last.
      mark: `best` of its column, significantly `better` or `worse`, or nothing.
    """

    text: str
    value: float = math.nan
    mark: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column is a name.

    Attributes:
      title: above it.
      note: below the title.
      columns: headings, the first that of the names.
      rows: name and fields.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Field, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
      heading: above it.
      sign: 1 where less is better, -1 where more is, 0 where there is no better.
    """

    heading: str
    sign: int


def overall_table(board: Board) -> Table:
    """All policies over all cells, the best first."""
    cells = len(board.cells)
    columns: list[tuple[Column, Callable[[Overall], float], Callable[[float], str]]] = [
        (Column("rank by mean E2E", 1), lambda each: each.mean_ranks["e2e_mean_s"], _fixed(".2f")),
        (Column("by p99 E2E", 1), lambda each: each.mean_ranks["e2e_p99_s"], _fixed(".2f")),
        (Column("by TTFT", 1), lambda each: each.mean_ranks["ttft_mean_s"], _fixed(".2f")),
        (Column("by TBT", 1), lambda each: each.mean_ranks["tbt_mean_s"], _fixed(".2f")),
        (Column("by goodput", 1), lambda each: each.mean_ranks["goodput"], _fixed(".2f")),
        (Column("E2E vs round robin %", 1), lambda each: each.against_reference_percent, percent),
        (Column("E2E vs best heuristic %", 1), lambda each: each.against_best_percent, percent),
        (Column("above bound %", 1), lambda each: each.above_bound_percent, percent),
        (Column("goodput %", -1), lambda each: 100 * each.goodput, _fixed(".1f")),
        (Column("load at 99 %", -1), lambda each: each.slo_load, _fixed(".2f")),
        (Column("wins", -1), lambda each: float(each.wins), _fixed(".0f")),
        (Column("better", -1), lambda each: float(each.better), _fixed(".0f")),
        (Column("worse", 1), lambda each: float(each.worse), _fixed(".0f")),
    ]
    rows = _filled(list(board.overall.items()), columns)
    note = (
        f"{cells} cells. Ranks are means over the cells, changes geometric means. Wins: cells with the lowest mean "
        "E2E; better, worse: cells where the mean E2E is significantly below, above that of the cell's best heuristic."
    )
    return Table("All cells", note, ("policy", *(column.heading for column, _, _ in columns)), rows)


def cell_table(cell: CellStandings) -> Table:
    """One cell, the lowest mean E2E first."""
    columns: list[tuple[Column, Callable[[Standing], float], Callable[[float], str]]] = [
        (Column("E2E p99 s", 1), _mean("e2e_p99_s"), seconds),
        (Column("TTFT s", 1), _mean("ttft_mean_s"), seconds),
        (Column("TTFT p99 s", 1), _mean("ttft_p99_s"), seconds),
        (Column("TBT ms", 1), lambda each: 1e3 * _mean("tbt_mean_s")(each), _fixed(".1f")),
        (Column("TBT p99 ms", 1), lambda each: 1e3 * _mean("tbt_p99_s")(each), _fixed(".1f")),
        (Column("goodput %", -1), lambda each: 100 * _mean("goodput")(each), _fixed(".1f")),
        (Column("preemptions", 1), _mean("preemptions"), _fixed(",.0f")),
        (Column("above bound %", 1), lambda each: each.above_bound_percent, percent),
    ]
    standings = sorted(cell.policies.items(), key=lambda item: item[1].ranks["e2e_mean_s"])
    filled = _filled(standings, columns)
    rows = [
        (name, (*_latency_fields(name, standing, cell), *fields))
        for (name, standing), (_, fields) in zip(standings, filled, strict=True)
    ]
    headings = ("policy", "rank", "mean E2E s [95 %]", "vs round robin %", "vs best heuristic %")
    return Table(
        f"{cell.workload}, {cell.fleet}, {cell.scheduler}, load {cell.load:g}",
        f"{cell.rate_per_s:.4g} requests/s, {cell.seeds} seeds; best heuristic: {cell.best_heuristic}; no router can "
        f"have a mean E2E below {seconds(cell.bound_s)} s.",
        (*headings, *(column.heading for column, _, _ in columns)),
        tuple(rows),
    )


def capacity_table(board: Board) -> Table:
    """The highest load within the objective, block by block."""
    labels = [", ".join(block.place) for block in board.capacities]
    rows = []
    for name in board.overall:
        fields = []
        for block in board.capacities:
            load, change = block.loads[name], block.against_reference[name]
            best = load.value == max(each.value for each in block.loads.values())
            mark = _sign_mark(change, -1) or ("best" if best else "")
            fields.append(Field(with_interval(load, _fixed(".2f")), load.value, mark))
        rows.append((name, tuple(fields)))
    return Table("Highest load within the objective", "", ("policy", *labels), tuple(rows))


def small_table(cases: Sequence[SmallCase], order: Sequence[str]) -> Table:
    """How far policies are above the best schedule that was found, and that above the bound."""
    labels = [f"{each.workload}, {each.fleet}, {each.scheduler}, seed {each.seed}" for each in cases]
    best = tuple(Field(seconds(each.found_s) + " s", each.found_s) for each in cases)
    bound = tuple(Field(_change(each.bound_s, each.found_s), each.bound_s) for each in cases)
    rows = [("best found", best), ("proven bound", bound)]
    for name in order:
        fields = []
        for each in cases:
            value = each.policies[name]
            is_best = value == min(each.policies.values())
            fields.append(Field(_change(value, each.found_s), value, "best" if is_best else ""))
        rows.append((name, tuple(fields)))
    return Table("Small cases: mean E2E against the best schedule found", "", ("policy", *labels), tuple(rows))


def seconds(value: float) -> str:
    """Four digits or so."""
    if math.isnan(value):
        return ABSENT
    return f"{value:z.{3 if value < 10 else 2 if value < 100 else 1}f}"


def percent(value: float) -> str:
    """With its sign."""
    return ABSENT if math.isnan(value) else f"{value:+z.{1 if abs(value) < 100 else 0}f}"


def with_interval(interval: Interval, text: Callable[[float], str]) -> str:
    """A value and its interval, where there is one."""
    if math.isnan(interval.low):
        return text(interval.value)
    return f"{text(interval.value)} [{text(interval.low)}, {text(interval.high)}]"


def _latency_fields(name: str, standing: Standing, cell: CellStandings) -> tuple[Field, ...]:
    mean = standing.comparison.means["e2e_mean_s"]
    reference = standing.comparison.against_reference["e2e_mean_s"]
    best = standing.comparison.against_best["e2e_mean_s"]
    rank = standing.ranks["e2e_mean_s"]
    return (
        Field(f"{rank:g}", rank),
        Field(with_interval(mean, seconds), mean.value, "best" if _is_lowest(rank, cell) else ""),
        Field(ABSENT, 0.0) if name == REFERENCE_POLICY else _difference(reference),
        Field("best", 0.0) if name == cell.best_heuristic else _difference(best),
    )


def _is_lowest(rank: float, cell: CellStandings) -> bool:
    return rank == min(each.ranks["e2e_mean_s"] for each in cell.policies.values())


def _difference(interval: Interval) -> Field:
    return Field(with_interval(interval, percent), interval.value, _sign_mark(interval, 1))


def _sign_mark(interval: Interval, sign: int) -> str:
    if not interval.significant:
        return ""
    return "better" if sign * interval.value < 0 else "worse"


def _change(value: float, reference: float) -> str:
    return percent(100 * (value / reference - 1)) + " %"


def _mean(column: str) -> Callable[[Standing], float]:
    return lambda standing: standing.comparison.means[column].value


def _fixed(spec: str) -> Callable[[float], str]:
    return lambda value: ABSENT if math.isnan(value) else format(value, spec)


def _filled(
    items: Sequence[tuple[str, object]],
    columns: Sequence[tuple[Column, Callable[..., float], Callable[[float], str]]],
) -> tuple[tuple[str, tuple[Field, ...]], ...]:
    """Rows of the items; in each column, those that read as the best does are marked, unless all read alike."""
    filled: list[list[Field]] = []
    for column, value_of, text in columns:
        values = [value_of(item) for _, item in items]
        texts = [text(value) for value in values]
        known = [(column.sign * value, shown) for value, shown in zip(values, texts, strict=True) if shown != ABSENT]
        best = min(known)[1] if column.sign and len({shown for _, shown in known}) > 1 else None
        filled.append(
            [Field(shown, value, "best" if shown == best else "") for value, shown in zip(values, texts, strict=True)]
        )
    return tuple((name, tuple(column[row] for column in filled)) for row, (name, _) in enumerate(items))
