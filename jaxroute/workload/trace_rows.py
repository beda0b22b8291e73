"""What every trace reader hands over: columns of numbers that know their lines, and the checks on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError

MOST_TOKENS = 2**31 - 1
"""The simulator counts tokens in int32."""


@dataclasses.dataclass(frozen=True)
class TraceRows:
    """M rows of a trace as read, not yet checked.

    Attributes:
      path: the file.
      columns: what the file calls the three columns.
      line: [M] int64, 1-based line of each row.
      row: [M] int64, 0-based row in the file, the header and blank lines not counted.
      arrival_s: [M] float64, seconds.
      prompt_tokens: [M] float64.
      output_tokens: [M] float64.
      task: [M] task names, where the file has them.
    """

    path: Path
    columns: tuple[str, str, str]
    line: np.ndarray
    row: np.ndarray
    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    task: Sequence[str] | None = None

    def take(self, rows: np.ndarray) -> TraceRows:
        """The given rows (a mask)."""
        arrays = ("line", "row", "arrival_s", "prompt_tokens", "output_tokens")
        task = None if self.task is None else [name for name, kept in zip(self.task, rows, strict=True) if kept]
        return dataclasses.replace(self, task=task, **{name: getattr(self, name)[rows] for name in arrays})

    def check(self) -> None:
        """Checks every number.

        Raises:
          InputError: names file, line and column of the first bad number.
        """
        arrival, prompt, output = self.columns
        self._reject(
            ~np.isfinite(self.arrival_s) | (self.arrival_s < 0), self.arrival_s, arrival, "must be a finite time >= 0"
        )
        for values, column in ((self.prompt_tokens, prompt), (self.output_tokens, output)):
            self._reject(
                ~(np.isfinite(values) & (values == np.floor(values))),
                values,
                column,
                "must be a whole number of tokens",
            )
            self._reject(values > MOST_TOKENS, values, column, f"must be at most {MOST_TOKENS} tokens")
            self._reject(
                values < 1,
                values,
                column,
                "must be at least 1 token; correct the row or delete it, it asks for no work",
            )

    def _reject(self, bad: np.ndarray, values: np.ndarray, column: str, rule: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(f"{self.path}: line {self.line[row]}: {column} is {values[row]:.17g}, {rule}")


def parse_numbers(cells: Sequence[str], line: np.ndarray, path: Path, column: str) -> np.ndarray:
    """[M] float64 out of [M] cells.

    Raises:
      InputError: names file, line and column of the first cell that is no number.
    """
    try:
        # float() takes 1_000 for a number; CSV writers do not.
        if any("_" in cell for cell in cells):
            raise ValueError
        return np.array([float(cell) for cell in cells], np.float64)
    except ValueError:
        row = next(row for row, cell in enumerate(cells) if not _is_number(cell))
        raise InputError(f"{path}: line {line[row]}: {column} is {shorten(cells[row])}, must be a number") from None


def shorten(text: str, most: int = 60) -> str:
    """Text from a file in quotes, safe to print and no longer than a line bears."""
    return repr(text if len(text) <= most else text[:most] + "...")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
