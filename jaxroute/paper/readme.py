"""The README's table of results, from a report: `make readme-results REPORT=DIR`, or without one from what is kept.

The numbers that it shows are kept in `results/paper.json`, so that a test can tell whether the README holds them.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxroute.errors import InputError
from jaxroute.output import atomic_path
from jaxroute.paired import Interval
from jaxroute.paper.write import OUTSIDE, RESULTS, interval_text

ROOT = Path(__file__).parents[2]
README, KEPT = ROOT / "README.md", ROOT / "results" / "paper.json"

BEGIN, END = "<!-- paper results: begin, written by make readme-results -->", "<!-- paper results: end -->"

SHOWN = ("part", "table", "row", "column", "value", "low", "high", "printed", "differs", "seeds", "command")


def headlines(report: Path) -> dict[str, object]:
    """What the README shows of a report.

    Raises:
      InputError: no report is there.
    """
    try:
        content = json.loads((report / RESULTS).read_text(encoding="utf-8"))
        rows = [{name: each[name] for name in SHOWN} for each in content["numbers"] if each["headline"]]
        return {"command": content["command"], "rows": rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{report / RESULTS}: is no report's ({error}); write one by jaxroute paper") from error


def table(kept: Mapping[str, Any]) -> str:
    """The README's lines between the markers."""
    lines = ["| part | | simulated [95 %] | paper |", "|---|---|--:|--:|"]
    for row in kept["rows"]:
        low, high = (math.nan if row[name] is None else row[name] for name in ("low", "high"))
        value = interval_text(Interval(row["value"], low, high, seeds=0), 2)
        mark = f" {OUTSIDE}" if row["differs"] else ""
        lines.append(f"| ({row['part']}) | {row['row']}: {row['column']} | {value} | {row['printed']:.6g}{mark} |")
    seeds = ", ".join(dict.fromkeys(row["seeds"] for row in kept["rows"]))
    lines += ["", f"(`{kept['command']}`; {seeds}; {OUTSIDE}: the printed number is outside the interval.)"]
    return "\n".join(lines)


def with_table(readme: str, kept: Mapping[str, Any]) -> str:
    """The README with the table in its place.

    Raises:
      InputError: the markers are missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"README.md: has no place for the table; put {BEGIN} and {END} where it should be")
    return f"{before}{BEGIN}\n\n{table(kept)}\n\n{END}{after}"


def main(arguments: Sequence[str]) -> None:
    """Keeps a report's headlines, if one is given, and writes the README's table."""
    if arguments:
        text = json.dumps(headlines(Path(arguments[0])), indent=1, ensure_ascii=False) + "\n"
        KEPT.parent.mkdir(exist_ok=True)
        with atomic_path(KEPT) as temporary:
            temporary.write_text(text, encoding="utf-8")
    new = with_table(README.read_text(encoding="utf-8"), json.loads(KEPT.read_text(encoding="utf-8")))
    with atomic_path(README) as temporary:
        temporary.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"readme: {error}")
        sys.exit(2)
