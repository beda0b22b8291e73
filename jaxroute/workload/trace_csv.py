"""CSV traces: our own form, Azure LLM 2023 and 2024, BurstGPT and Vidur; extra columns are ignored."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.table import NO_TASK
from jaxroute.workload.trace_rows import TraceRows, parse_numbers, shorten

TASK_COLUMN = "task"
TIMESTAMP = re.compile(r"((?:19|20)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|\+00:?00)?")


@dataclasses.dataclass(frozen=True)
class CsvFormat:
    """A CSV trace format, recognised by its columns.

    Attributes:
      name: whose it is.
      arrival, prompt, output: its columns.
      has_dates: whether arrivals are dates and times (UTC) and not seconds.
      zero_output_is_failure: whether a row with 0 output tokens is a request that failed.
    """

    name: str
    arrival: str
    prompt: str
    output: str
    has_dates: bool = False
    zero_output_is_failure: bool = False

    @property
    def columns(self) -> tuple[str, str, str]:
        """The three columns."""
        return self.arrival, self.prompt, self.output


CSV_FORMATS = (
    CsvFormat("native", "arrival_s", "prompt_tokens", "output_tokens"),
    CsvFormat("Azure LLM", "TIMESTAMP", "ContextTokens", "GeneratedTokens", has_dates=True),
    CsvFormat("BurstGPT", "Timestamp", "Request tokens", "Response tokens", zero_output_is_failure=True),
    CsvFormat("Vidur", "arrived_at", "num_prefill_tokens", "num_decode_tokens"),
)


def recognise(header: str) -> CsvFormat | None:
    """The format whose columns are all in a header line; None where there is none."""
    names = set(_header_cells(header))
    return next((form for form in CSV_FORMATS if names.issuperset(form.columns)), None)


def read_csv(lines: Sequence[str], path: Path, form: CsvFormat) -> TraceRows:
    """The rows of a CSV trace; its first line that is not blank is the header.

    Args:
      lines: of the file.
      path: of the file, for errors.
      form: what the header was recognised as.

    Raises:
      InputError: no rows, a column that occurs twice, a wrong column count, or a cell that is no number or time.
    """
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    header = _header_cells(lines[numbers[0] - 1])
    if twice := [name for name in (*form.columns, TASK_COLUMN) if header.count(name) > 1]:
        raise InputError(f"{path}: line {numbers[0]}: column {twice[0]} occurs twice; remove one")
    if len(numbers) == 1:
        raise InputError(f"{path}: has a header but no requests; give a trace with at least one row")
    rows = [_cells(lines[number - 1], number, path) for number in numbers[1:]]
    line = np.array(numbers[1:])
    _check_widths(rows, line, header, path)

    def cells(name: str) -> list[str]:
        index = header.index(name)
        return [row[index] for row in rows]

    parse_arrivals = parse_dates if form.has_dates else parse_numbers
    return TraceRows(
        path=path,
        columns=form.columns,
        line=line,
        row=np.arange(len(rows)),
        arrival_s=parse_arrivals(cells(form.arrival), line, path, form.arrival),
        prompt_tokens=parse_numbers(cells(form.prompt), line, path, form.prompt),
        output_tokens=parse_numbers(cells(form.output), line, path, form.output),
        task=[cell.strip() or NO_TASK for cell in cells(TASK_COLUMN)] if TASK_COLUMN in header else None,
    )


def parse_dates(cells: Sequence[str], line: np.ndarray, path: Path, column: str) -> np.ndarray:
    """[M] float64 seconds since the earliest of [M] dates such as `2023-11-16 18:17:03.9799600` (UTC).

    Raises:
      InputError: names file, line and column of the first cell that is no such date.
    """
    matches = [TIMESTAMP.fullmatch(cell.strip()) for cell in cells]
    try:
        dates = np.array([match[1] if match else "bad" for match in matches], "datetime64[ns]")
    except ValueError:
        row = next(row for row, match in enumerate(matches) if not (match and _is_date(match[1])))
        raise InputError(
            f"{path}: line {line[row]}: {column} is {shorten(cells[row])}, must be a UTC time such as "
            "2023-11-16 18:17:03.9799600"
        ) from None
    return (dates - dates.min()).astype(np.int64) / 1e9


def _is_date(text: str) -> bool:
    try:
        np.datetime64(text, "ns")
    except ValueError:
        return False
    return True


def _header_cells(line: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(",")]


def _cells(line: str, number: int, path: Path) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise InputError(f"{path}: line {number}: not CSV ({error}); correct or delete the row") from error


def _check_widths(rows: Sequence[Sequence[str]], line: np.ndarray, header: Sequence[str], path: Path) -> None:
    for row, number in zip(rows, line, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {number}: has {len(row)} columns, the header has {len(header)}; correct "
                "or delete the row"
            )
