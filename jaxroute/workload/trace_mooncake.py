"""Mooncake traces: JSON lines with `timestamp` (milliseconds), `input_length`, `output_length`; the rest is ignored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.trace_rows import TraceRows, shorten

FIELDS = ("timestamp", "input_length", "output_length")


def read_mooncake(lines: Sequence[str], path: Path) -> TraceRows:
    """The rows of a Mooncake trace, its blank lines left out.

    Raises:
      InputError: names file and line of the first line that is no JSON object, lacks a field, or has no number in it.
    """
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    values = np.array([_values(lines[number - 1], number, path) for number in numbers], np.float64)
    return TraceRows(
        path=path,
        columns=FIELDS,
        line=np.array(numbers),
        row=np.arange(len(numbers)),
        arrival_s=values[:, 0] / 1e3,
        prompt_tokens=values[:, 1],
        output_tokens=values[:, 2],
    )


def _values(line: str, number: int, path: Path) -> list[float]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: line {number}: not JSON ({error}); correct or delete the line") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: line {number}: must be a JSON object with {', '.join(FIELDS)}")
    if missing := [field for field in FIELDS if field not in record]:
        raise InputError(
            f"{path}: line {number}: lacks {', '.join(missing)}; a Mooncake trace has {', '.join(FIELDS)} in each line"
        )
    return [_number(record[field], field, number, path) for field in FIELDS]


def _number(value: object, field: str, number: int, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{path}: line {number}: {field} is {shorten(json.dumps(value))}, must be a number")
    try:
        return float(value)
    except OverflowError:
        return float("inf")
