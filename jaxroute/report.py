"""Summaries of several policies over one workload -> tables for the terminal (rich) and for a README (Markdown)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxroute.errors import InputError
from jaxroute.metrics import Summary, reference_summary, relative_change_percent

BEST_STYLE = "bold green"
ABSENT = "-"
DELTA = "Δ %"
NAME_WIDTH = 26
"""Columns that a policy's name is given before it is folded."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the comparison; in all of them the lowest value is the best.

    Attributes:
      quantity: upper line of the header.
      statistic: lower line of the header, with the unit where there is one.
      value: (summary, reference summary) -> the number; NaN where it does not exist.
      text: the column's numbers -> their texts, in one precision.
    """

    quantity: str
    statistic: str
    value: Callable[[Summary, Summary], float]
    text: Callable[[Sequence[float]], list[str]]


@dataclasses.dataclass(frozen=True)
class Cells:
    """A column filled in: `texts` and `best`, both [policies]; the best are those that read as the lowest does."""

    texts: list[str]
    best: list[bool]


def _seconds(values: Sequence[float]) -> list[str]:
    largest = max((value for value in values if not math.isnan(value)), default=0.0)
    decimals = 3 if largest < 10 else 2 if largest < 100 else 1
    return [f"{value:z.{decimals}f}" for value in values]


def _fixed(spec: str) -> Callable[[Sequence[float]], list[str]]:
    return lambda values: [format(value, spec) for value in values]


def _field(quantity: str, statistic: str, name: str, text: Callable[[Sequence[float]], list[str]]) -> Column:
    return Column(quantity, statistic, lambda summary, _: getattr(summary, name), text)


def _change(quantity: str, name: str, statistic: str = DELTA) -> Column:
    def value(summary: Summary, reference: Summary) -> float:
        return relative_change_percent(getattr(summary, name), getattr(reference, name))

    return Column(quantity, statistic, value, _fixed("+z.1f"))


def _milliseconds(quantity: str, statistic: str, name: str) -> Column:
    return Column(quantity, statistic, lambda summary, _: 1e3 * getattr(summary, name), _fixed("z.1f"))


LATENCY_COLUMNS = (
    _field("E2E", "mean s", "e2e_mean_s", _seconds),
    _change("E2E", "e2e_mean_s"),
    _field("E2E", "p50 s", "e2e_p50_s", _seconds),
    _field("E2E", "p95 s", "e2e_p95_s", _seconds),
    _field("E2E", "p99 s", "e2e_p99_s", _seconds),
    _field("TTFT", "mean s", "ttft_mean_s", _seconds),
    _change("TTFT", "ttft_mean_s"),
    _field("TTFT", "p99 s", "ttft_p99_s", _seconds),
    _milliseconds("TBT", "mean ms", "tbt_mean_s"),
    _milliseconds("TBT", "p99 ms", "tbt_p99_s"),
)
FLEET_COLUMNS = (
    _field("router wait", "mean s", "router_wait_mean_s", _seconds),
    _field("instance wait", "mean s", "instance_wait_mean_s", _seconds),
    _field("makespan", "s", "makespan_s", _seconds),
    _change("makespan", "makespan_s"),
    _field("preemptions", "", "preemptions", _fixed(",.0f")),
    _field("recomputed", "tokens", "recomputed_tokens", _fixed(",.0f")),
    _field("imbalance", "max / mean", "load_imbalance", _fixed(".3f")),
)


CHANGE_COLUMNS = (
    _change("E2E", "e2e_mean_s", "mean"),
    _change("E2E", "e2e_p50_s", "p50"),
    _change("E2E", "e2e_p95_s", "p95"),
    _change("E2E", "e2e_p99_s", "p99"),
    _change("TTFT", "ttft_mean_s", "mean"),
    _change("TTFT", "ttft_p99_s", "p99"),
    _change("TBT", "tbt_mean_s", "mean"),
    _change("TBT", "tbt_p99_s", "p99"),
    _change("router", "router_wait_mean_s", "wait"),
    _change("instance", "instance_wait_mean_s", "wait"),
    _change("make-", "makespan_s", "span"),
    _change("pre-", "preemptions", "empt."),
    _change("recom-", "recomputed_tokens", "puted"),
    _change("im-", "load_imbalance", "bal."),
)
"""Every number of the two tables as its change against the reference, in %."""


def comparison_table(summaries: Sequence[Summary]) -> Group:
    """Stacked rich tables, one row per policy, the best of each column highlighted: latency, fleet, all changes in %.

    They fit into 120 terminal columns; a policy's name that leaves no room for the numbers is folded.

    Raises:
      InputError: no summaries, or summaries of different workloads.
    """
    reference = _checked_reference(summaries)
    latency = _rich_table(summaries, reference, LATENCY_COLUMNS)
    latency.title = f"{reference.workload}: {reference.count:,} requests, {len(reference.action_share)} instances"
    fleet = _rich_table(summaries, reference, FLEET_COLUMNS)
    fleet.caption = f"{_note(reference)} is highlighted"
    if len(summaries) == 1:
        return Group(latency, fleet)
    changes = _rich_table(summaries, reference, CHANGE_COLUMNS)
    changes.title = f"each against {reference.policy}, %"
    return Group(latency, fleet, changes)


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The same two tables as Markdown, the best of each column in bold; ends with a newline.

    Raises:
      InputError: no summaries, or summaries of different workloads.
    """
    reference = _checked_reference(summaries)
    tables = [_markdown(summaries, reference, columns) for columns in (LATENCY_COLUMNS, FLEET_COLUMNS)]
    return "\n\n".join([*tables, f"{_note(reference)} is in bold."]) + "\n"


def fill(column: Column, summaries: Sequence[Summary], reference: Summary) -> Cells:
    """The column's texts, and which of them are the best: none where all read the same."""
    values = [column.value(summary, reference) for summary in summaries]
    texts = [ABSENT if math.isnan(value) else text for value, text in zip(values, column.text(values), strict=True)]
    known = [(value, text) for value, text in zip(values, texts, strict=True) if text != ABSENT]
    lowest = min(known)[1] if len({text for _, text in known}) > 1 else None
    return Cells(texts, [text == lowest for text in texts])


def _checked_reference(summaries: Sequence[Summary]) -> Summary:
    if not summaries:
        raise InputError("nothing to compare: give at least one policy")
    workloads = sorted({summary.workload for summary in summaries})
    if len(workloads) > 1:
        raise InputError(f"policies are compared over one workload, not over {', '.join(workloads)}")
    return reference_summary(summaries)


def _note(reference: Summary) -> str:
    return f"Δ: change of the column to its left against {reference.policy}; the best of each column"


def _rich_table(summaries: Sequence[Summary], reference: Summary, columns: Sequence[Column]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left", caption_justify="left"
    )
    longest = max(len(summary.policy) for summary in summaries)
    table.add_column("\npolicy", overflow="fold", min_width=min(longest, NAME_WIDTH))
    for column in columns:
        table.add_column(f"{column.quantity}\n{column.statistic}", justify="right", no_wrap=True)
    filled = [fill(column, summaries, reference) for column in columns]
    for row, summary in enumerate(summaries):
        cells = [Text(cell.texts[row], style=BEST_STYLE if cell.best[row] else "") for cell in filled]
        table.add_row(Text(summary.policy), *cells)
    return table


def _markdown(summaries: Sequence[Summary], reference: Summary, columns: Sequence[Column]) -> str:
    filled = [fill(column, summaries, reference) for column in columns]
    header = ["policy", *(f"{column.quantity} {column.statistic}".strip() for column in columns)]
    lines = [header, ["---", *("--:" for _ in columns)]]
    for row, summary in enumerate(summaries):
        cells = [f"**{cell.texts[row]}**" if cell.best[row] else cell.texts[row] for cell in filled]
        lines.append([summary.policy.replace("|", "\\|"), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
