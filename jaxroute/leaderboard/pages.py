"""Tables and pictures -> one Markdown file, and one HTML page that needs nothing else."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from string import Template

from jaxroute.leaderboard.tables import Field, Table

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --soft: #666; --line: #d8d8d8; --head: #f4f4f4;
        --better: #005a8c; --worse: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181b; --soft: #a0a0a0; --line: #3a3d42;
        --head: #22252a; --better: #7cc4f0; --worse: #f0a070; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 82rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
p, li { max-width: 60rem; } .note, figcaption { color: var(--soft); } code { font-size: .9em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
thead th { background: var(--head); vertical-align: bottom; white-space: normal; min-width: 3.5rem; }
thead th:first-child { background: var(--head); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid currentColor; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.best { font-weight: 700; } .better { color: var(--better); font-weight: 600; } .worse { color: var(--worse); }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; color: var(--ink); }
details > summary { cursor: pointer; font-weight: 600; margin: .4rem 0; }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
  const key = row => { const text = row.cells[column].dataset.value; return column ? Number(text) : text; };
  const rows = [...body.rows].sort((one, other) => {
    const a = key(one), b = key(other);
    if (column && (Number.isNaN(a) || Number.isNaN(b))) return Number.isNaN(a) - Number.isNaN(b);
    return (a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1);
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
});
"""

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
$content
<script>$script</script>
</body>
</html>
"""
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
      file: its PNG beside the Markdown.
      svg: inline, from `<svg` on.
      caption: what it shows.
    """

    file: str
    svg: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with paragraphs, pictures and tables.

    Attributes:
      title: heading.
      paragraphs: plain text.
      pictures: below it.
      tables: below those.
      folded: whether the page shows each table only when it is opened.
    """

    title: str
    paragraphs: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    folded: bool = False


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The Markdown file; pictures are linked."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += list(section.paragraphs)
        parts += [f"![{picture.caption}]({picture.file})" for picture in section.pictures]
        for table in section.tables:
            if table.title != section.title:
                parts.append(f"### {table.title}")
            parts += [part for part in (table.note, _markdown_table(table)) if part]
    return "\n\n".join(parts) + "\n"


def page(title: str, sections: Sequence[Section]) -> str:
    """The HTML page: no network, no file beside it."""
    content = "\n".join(_html_section(section) for section in sections)
    return PAGE.substitute(title=html.escape(title), style=STYLE, content=content, script=SCRIPT)


def _markdown_table(table: Table) -> str:
    lines = [list(table.columns), ["---", *("--:" for _ in table.columns[1:])]]
    lines += [[name, *(_markdown_field(field) for field in fields)] for name, fields in table.rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _markdown_field(field: Field) -> str:
    return f"**{field.text}**" if field.mark in ("best", "better") else field.text


def _html_section(section: Section) -> str:
    parts = [f"<section>\n<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    parts += [
        f"<figure>{picture.svg}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        for picture in section.pictures
    ]
    for table in section.tables:
        body = _html_table(table)
        title = html.escape(table.title)
        if section.folded:
            body = f"<details><summary>{title}</summary>\n{body}\n</details>"
        elif table.title != section.title:
            body = f"<h3>{title}</h3>\n{body}"
        parts.append(body)
    return "\n".join([*parts, "</section>"])


def _html_table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(column)}</button></th>' for column in table.columns
    )
    rows = "\n".join(
        f'<tr><td data-value="{html.escape(name)}">{html.escape(name)}</td>{"".join(map(_html_field, fields))}</tr>'
        for name, fields in table.rows
    )
    note = f'<p class="note">{html.escape(table.note)}</p>\n' if table.note else ""
    return (
        f'{note}<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _html_field(field: Field) -> str:
    mark = f' class="{field.mark}"' if field.mark else ""
    value = "NaN" if math.isnan(field.value) else repr(float(field.value))
    return f'<td data-value="{value}"{mark}>{html.escape(field.text)}</td>'
