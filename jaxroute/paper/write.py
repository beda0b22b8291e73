"""Sections -> the report: Markdown, one HTML page that needs no other file, and every number as JSON."""

from __future__ import annotations

import base64
import dataclasses
import html
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxroute.leaderboard.pages import PAGE, STYLE
from jaxroute.output import plain_json, report_paths
from jaxroute.paired import Interval
from jaxroute.paper.part import Cell, Row, Table
from jaxroute.paper.section import Section

TITLE = "The paper, row by row"
MARKDOWN, HTML, RESULTS = "report.md", "report.html", "results.json"

OUTSIDE = "≠"
LEGEND = (
    "Brackets hold 95 % bootstrap intervals over seeds, of paired differences where two policies are compared. A "
    f"column headed `paper` holds what the paper prints for the column before it; {OUTSIDE} marks a number outside our "
    "interval. The paper prints no intervals."
)


@dataclasses.dataclass(frozen=True)
class Header:
    """The top of the report.

    Attributes:
      command: that makes all of it.
      lines: how it was made.
    """

    command: str
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of ours with what it needs to be made again.

    Attributes:
      part: letter.
      table, row, column: where it stands.
      value, low, high: with its interval.
      printed: the paper's, if there is one.
      differs: whether that is outside the interval; None where there are not both.
      seeds, command: of its table.
      headline: whether the README shows it.
    """

    part: str
    table: str
    row: str
    column: str
    value: float
    low: float
    high: float
    printed: float | None
    differs: bool | None
    seeds: str
    command: str
    headline: bool = False


def write_report(folder: Path, sections: Sequence[Section], header: Header) -> list[str]:
    """Writes all files; all are complete before the first is in place.

    Returns:
      Their names.

    Raises:
      OSError: the folder cannot be written, or a picture is not there.
    """
    found = [dataclasses.asdict(each) for each in numbers(sections)]
    results = {"command": header.command, "numbers": found}
    texts = {
        MARKDOWN: markdown(sections, header),
        HTML: page(folder, sections, header),
        RESULTS: json.dumps(plain_json(results), indent=1, allow_nan=False) + "\n",
    }
    with report_paths(folder, *texts) as paths:
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    return list(texts)


def numbers(sections: Sequence[Section]) -> Iterator[Number]:
    """Every number of ours in the tables."""
    for section in sections:
        for table in section.tables:
            for row in table.rows:
                yield from _row_numbers(section.letter, table, row)


def _row_numbers(letter: str, table: Table, row: Row) -> Iterator[Number]:
    for column, cell in zip(table.columns[1:], row.cells, strict=True):
        if cell.value is None:
            continue
        value, printed = cell.value, cell.printed
        place = letter, table.title, row.name, column
        yield Number(
            *place,
            value.value,
            value.low,
            value.high,
            printed,
            cell.differs,
            table.seeds,
            table.command,
            column == row.headline and printed is not None,
        )


def markdown(sections: Sequence[Section], header: Header) -> str:
    """The Markdown file; pictures are linked."""
    blocks = [f"# {TITLE}", f"    {header.command}", *header.lines, LEGEND, _markdown_lines(_overview(sections))]
    for section in sections:
        blocks.append(f"## {_heading(section)}")
        blocks += [f"*{section.paper}*", *section.setting, *section.cuts]
        for table in section.tables:
            blocks += [f"### {table.title}", *([table.note] if table.note else [])]
            blocks += [_markdown_lines(grid_of(table)), f"`{table.command}` ({table.seeds})"]
            if verdict := verdict_of(table):
                blocks.append(verdict)
        for shot in section.pictures:
            blocks += [f"![{shot.caption}]({shot.file})", f"{shot.caption} `{shot.command}`"]
        blocks += [f"- {remark}" for remark in section.remarks]
        blocks += [f"    {command}" for command in section.commands]
    return "\n\n".join(blocks) + "\n"


def page(folder: Path, sections: Sequence[Section], header: Header) -> str:
    """The HTML page; pictures are in it."""
    parts = [f"<pre><code>{html.escape(header.command)}</code></pre>"]
    parts += [f"<p>{html.escape(line)}</p>" for line in (*header.lines, LEGEND)]
    parts.append(_html_lines(_overview(sections)))
    parts += [_html_section(folder, section) for section in sections]
    style = STYLE + "img { max-width: 100%; height: auto; background: #ffffff; } pre { overflow-x: auto; }\n"
    return PAGE.substitute(title=TITLE, style=style, content="\n".join(parts), script="")


def grid_of(table: Table) -> list[list[str]]:
    """A table as texts, the headings first; the paper's numbers follow every column that it has some for."""
    has_printed = [any(row.cells[at].printed is not None for row in table.rows) for at in range(len(table.columns) - 1)]
    lines = [[table.columns[0]]]
    for heading, printed in zip(table.columns[1:], has_printed, strict=True):
        lines[0] += [heading, "paper"] if printed else [heading]
    for row in table.rows:
        line = [row.name]
        for cell, printed in zip(row.cells, has_printed, strict=True):
            line += [cell_text(cell), printed_text(cell)] if printed else [cell_text(cell)]
        lines.append(line)
    return lines


def cell_text(cell: Cell) -> str:
    """Our number with its interval."""
    if cell.value is None:
        return cell.text
    return interval_text(cell.value, cell.decimals, signed=cell.signed)


def printed_text(cell: Cell) -> str:
    """The paper's number."""
    if cell.printed is None:
        return ""
    sign = "+" if cell.signed and cell.printed > 0 else ""
    source = f" ({cell.source})" if cell.source else ""
    return f"{sign}{cell.printed:.6g}{source}{f' {OUTSIDE}' if cell.differs else ''}"


def interval_text(value: Interval, decimals: int | None = None, *, signed: bool = False) -> str:
    """`value [low, high]`; the value alone where there is no interval."""
    if math.isnan(value.value):
        return "-"
    size = abs(value.value)
    places = decimals if decimals is not None else 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    sign = "+" if signed else ""

    def text(number: float) -> str:
        return f"{number:{sign}z,.{places}f}"

    if math.isnan(value.low):
        return text(value.value)
    return f"{text(value.value)} [{text(value.low)}, {text(value.high)}]"


def verdict_of(table: Table) -> str:
    """How many of the paper's numbers are within our intervals; empty where there are none."""
    judged = [cell.differs for row in table.rows for cell in row.cells if cell.differs is not None]
    if not judged:
        return ""
    outside = sum(judged)
    if not outside:
        return f"All {len(judged)} printed numbers are within our intervals."
    return f"{outside} of {len(judged)} printed numbers are outside our intervals; see below for why."


def _heading(section: Section) -> str:
    return f"({section.letter}) {section.title}"


def _overview(sections: Sequence[Section]) -> list[list[str]]:
    lines = [["part", "in the paper", "numbers of ours", "printed", "printed, outside our interval", "seconds"]]
    for section in sections:
        cells = [cell for table in section.tables for row in table.rows for cell in row.cells]
        ours = sum(cell.value is not None for cell in cells)
        judged = [cell.differs for cell in cells if cell.differs is not None]
        own = [str(ours), str(len(judged)), str(sum(judged)), f"{section.seconds:.0f}"]
        lines.append([_heading(section), section.paper, *own])
    return lines


def _markdown_lines(lines: Sequence[Sequence[str]]) -> str:
    rows = [list(lines[0]), ["---", *("--:" for _ in lines[0][1:])], *map(list, lines[1:])]
    return "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in row)} |" for row in rows)


def _html_lines(lines: Sequence[Sequence[str]]) -> str:
    heads = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in lines[0])
    rows = "\n".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in line) + "</tr>" for line in lines[1:])
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _html_section(folder: Path, section: Section) -> str:
    parts = [
        f"<section>\n<h2>{html.escape(_heading(section))}</h2>",
        f'<p class="note">{html.escape(section.paper)}</p>',
    ]
    parts += [f"<p>{html.escape(text)}</p>" for text in (*section.setting, *section.cuts)]
    for table in section.tables:
        parts.append(f"<h3>{html.escape(table.title)}</h3>")
        parts += [f"<p>{html.escape(table.note)}</p>"] if table.note else []
        parts.append(_html_lines(grid_of(table)))
        made = f"<code>{html.escape(table.command)}</code> ({html.escape(table.seeds)})"
        parts.append(f'<p class="note">{made} {html.escape(verdict_of(table))}</p>')
    for shot in section.pictures:
        data = base64.b64encode((folder / shot.file).read_bytes()).decode()
        caption = f"{html.escape(shot.caption)} <code>{html.escape(shot.command)}</code>"
        image = f'<img alt="{html.escape(shot.caption)}" src="data:image/png;base64,{data}">'
        parts.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    if section.remarks:
        parts.append("<ul>" + "".join(f"<li>{html.escape(remark)}</li>" for remark in section.remarks) + "</ul>")
    parts += [f"<pre><code>{html.escape(command)}</code></pre>" for command in section.commands]
    return "\n".join([*parts, "</section>"])
