"""A part that has been run, as it is kept in the report's folder: pictures as PNG, everything else as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from jaxroute.output import atomic_path, plain_json
from jaxroute.paired import Interval
from jaxroute.paper.part import Cell, Context, Findings, Part, Row, Table

FOLDER = "parts"


@dataclasses.dataclass(frozen=True)
class Shot:
    """A picture of the report.

    Attributes:
      file: its PNG, in the report's folder.
      caption: what it shows.
      command: that makes it.
    """

    file: str
    caption: str
    command: str


@dataclasses.dataclass(frozen=True)
class Section:
    """What a part found, on disk.

    Attributes:
      letter, name, title, paper: of the part.
      seconds: that it took, with what was kept from earlier runs.
      setting, tables, remarks, cuts, commands: see `Findings`.
      pictures: the files.
    """

    letter: str
    name: str
    title: str
    paper: str
    seconds: float
    setting: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Shot, ...]
    remarks: tuple[str, ...]
    cuts: tuple[str, ...]
    commands: tuple[str, ...]


def keep(context: Context, part: Part, findings: Findings, seconds: float) -> Section:
    """Writes the pictures, then the rest.

    Raises:
      OSError: the folder cannot be written.
    """
    from jaxroute import plots

    context.out.mkdir(parents=True, exist_ok=True)
    shots = []
    for picture in findings.pictures:
        file = f"{picture.name}.png"
        plots.save(picture.figure, context.out / file)
        shots.append(Shot(file, picture.caption, picture.command))
    section = Section(
        letter=part.letter,
        name=part.name,
        title=part.title,
        paper=part.paper,
        seconds=seconds,
        setting=findings.setting,
        tables=findings.tables,
        pictures=tuple(shots),
        remarks=findings.remarks,
        cuts=findings.cuts,
        commands=findings.commands,
    )
    folder = context.out / FOLDER
    folder.mkdir(exist_ok=True)
    content = {"made": _made(context), "section": dataclasses.asdict(section)}
    with atomic_path(folder / f"{part.letter}.json") as temporary:
        temporary.write_text(json.dumps(plain_json(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return section


def kept(context: Context, letter: str) -> Section | None:
    """What a part found when it was last run with the same options; None if it was not."""
    try:
        content = json.loads((context.out / FOLDER / f"{letter}.json").read_text(encoding="utf-8"))
        if content["made"] != plain_json(_made(context)):
            return None
        return _section(content["section"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _made(context: Context) -> dict[str, object]:
    prompts = [str(path) for path in context.prompts]
    return {"effort": dataclasses.asdict(context.effort), "first_seed": context.first_seed, "prompts": prompts}


def _section(fields: dict[str, Any]) -> Section:
    tables = tuple(_table(each) for each in fields.pop("tables"))
    pictures = tuple(Shot(**each) for each in fields.pop("pictures"))
    plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Section(tables=tables, pictures=pictures, **plain)


def _table(fields: dict[str, Any]) -> Table:
    rows = tuple(
        Row(each["name"], tuple(_cell(cell) for cell in each["cells"]), each["headline"]) for each in fields.pop("rows")
    )
    return Table(rows=rows, columns=tuple(fields.pop("columns")), **fields)


def _cell(fields: dict[str, Any]) -> Cell:
    value = fields.pop("value")
    return Cell(value=None if value is None else _interval(value), **fields)


def _interval(fields: dict[str, Any]) -> Interval:
    """Null stands for NaN."""
    ends = {name: math.nan if fields[name] is None else fields[name] for name in ("value", "low", "high")}
    return Interval(seeds=fields["seeds"], **ends)
