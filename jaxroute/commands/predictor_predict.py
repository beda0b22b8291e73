"""`jaxroute predictor predict`."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table
from rich.text import Text

from jaxroute.commands.console import table_console
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.predictor.predictor import Estimate, Predictor

AT_ONCE = 64
"""Prompts that the network takes together."""

SHOWN_CHARACTERS = 60
"""Of a prompt in a table."""

STDIN = Path("-")


@dataclasses.dataclass(frozen=True)
class _Request:
    prompt: str
    task: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict the output length of prompts: given as arguments, or as JSON lines from a file or standard input.

    Prints the length bucket, the output tokens that stand for it, the most of it, its probability, the mean that all
    buckets' probabilities give, and the task: the given one, or else what the predictor takes it for.
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT ...")] = ()
    """Texts of the prompts."""
    file: Path | None = None
    """JSON lines with `prompt` and, if known, `task`; may be gzip; - for standard input."""
    task: str | None = None
    """Task of the prompts that come without one, such as qa_open (`jaxroute predictor show` lists those known)."""
    model: str = "default"
    """default (the shipped predictor), or a folder that `jaxroute predictor train` wrote."""
    format: Literal["table", "json", "csv"] = "table"
    """table, json (one object a line) or csv; rows are in the order of the prompts."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.predictor.predictor import Predictor

        requests = self._requests()
        predictor = Predictor.load(self.model)
        rows = _rows(predictor, requests)
        if self.format == "json":
            for row in rows:
                print(json.dumps(row, allow_nan=False))
        elif self.format == "csv":
            lines = csv.writer(sys.stdout, lineterminator="\n")
            for number, row in enumerate(rows):
                if number == 0:
                    lines.writerow(row)
                lines.writerow("" if value is None else value for value in row.values())
        else:
            table_console().print(_table(predictor, requests, list(rows)))

    def _requests(self) -> list[_Request]:
        if bool(self.prompts) == (self.file is not None):
            raise InputError("give prompts as arguments, or --file with JSON lines (- for standard input)")
        if self.file is None:
            return [_Request(prompt, self.task) for prompt in self.prompts]
        place = "standard input" if self.file == STDIN else str(self.file)
        requests = [
            self._parsed(line, f"{place}: line {number}")
            for number, line in enumerate(_lines(self.file), start=1)
            if line.strip()
        ]
        if not requests:
            raise InputError(f'{place}: holds no lines; give JSON lines such as {{"prompt": "Who are you?"}}')
        return requests

    def _parsed(self, line: str, place: str) -> _Request:
        example = '{"prompt": "Who are you?", "task": "qa_open"}'
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: is no JSON ({error}); write {example}") from error
        if not isinstance(data, dict) or not isinstance(data.get("prompt"), str):
            raise InputError(f"{place}: has no text called prompt; write {example}")
        task = data.get("task")
        if task is not None and not isinstance(task, str):
            raise InputError(f"{place}: task is {task!r}, must be a text or left out; write {example}")
        return _Request(data["prompt"], self.task if task is None else task)


def _lines(file: Path) -> list[str]:
    from jaxroute.workload.text_file import read_lines

    if file != STDIN:
        return read_lines(file)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: is not UTF-8 text ({error}); convert it to UTF-8") from error


def _rows(predictor: Predictor, requests: Sequence[_Request]) -> Iterator[dict[str, object]]:
    """One for each request, as it is known."""
    names = predictor.file.buckets.names()
    for start in range(0, len(requests), AT_ONCE):
        part = requests[start : start + AT_ONCE]
        estimates = predictor.predict([(request.prompt, request.task) for request in part])
        for number, estimate in enumerate(estimates, start=start + 1):
            yield _row(number, estimate, names)


def _row(number: int, estimate: Estimate, names: Sequence[str]) -> dict[str, object]:
    return {
        "row": number,
        "bucket": estimate.bucket,
        "range": names[estimate.bucket],
        "tokens": estimate.tokens,
        "upper": estimate.upper,
        "probability": round(estimate.probability, 4),
        "expected_tokens": round(estimate.expected_tokens, 1),
        "task": estimate.task,
        "task_source": estimate.task_source,
    }


def _table(predictor: Predictor, requests: Sequence[_Request], rows: Sequence[dict[str, object]]) -> Table:
    table = Table(title=f"predicted output tokens, predictor {predictor.file.name}", title_justify="left")
    for heading in ("row", "range", "stands for", "at most", "probability", "mean"):
        table.add_column(heading, justify="right")
    for heading in ("task", "prompt"):
        table.add_column(heading)
    for request, row in zip(requests, rows, strict=True):
        task = "-" if row["task"] is None else f"{row['task']} ({row['task_source']})"
        figures = (row[name] for name in ("row", "range", "tokens", "upper", "probability", "expected_tokens"))
        table.add_row(*map(str, figures), Text(task), Text(_beginning(request.prompt)))
    return table


def _beginning(prompt: str) -> str:
    """A line of a prompt that every terminal can print."""
    line = " ".join(prompt[: 4 * SHOWN_CHARACTERS].split())
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."
