"""The learning curve of a run on disk: `metrics.csv` and TensorBoard's event files."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from jaxroute.output import atomic_path
from jaxroute.train.dqn_state import DqnMetrics
from jaxroute.train.evolution import Progress
from jaxroute.train.gradient_state import GradientMetrics
from jaxroute.train.report import Metrics
from jaxroute.train.validation import Figures

FILE = "metrics.csv"
VALID = "valid_"
"""Begins the columns of validation."""

WHERE = ("stage", "update", "env_steps", "seed", "seconds")
COLUMNS = (
    *WHERE,
    *dict.fromkeys((*Metrics._fields, *GradientMetrics._fields, *Progress._fields, *DqnMetrics._fields)),
    *(VALID + field.name for field in dataclasses.fields(Figures)),
)

Row = Mapping[str, Any]
"""A line of `metrics.csv`: those of `COLUMNS` that it has."""


class Scalars:
    """Writes rows as they come."""

    def __init__(self, folder: Path, *, stage_order: tuple[str, ...], stage: str, update: int) -> None:
        """Opens the files; rows from after a point of the run, which are to come again, are left out.

        Args:
          folder: of the run.
          stage_order: names of the stages.
          stage, update: the point from which the run goes on.
        """
        self._path = folder / FILE
        kept = [
            row
            for row in _read(self._path)
            if (stage_order.index(row["stage"]), int(row["update"])) <= (stage_order.index(stage), update)
        ]
        with atomic_path(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, COLUMNS, restval="", lineterminator="\n")
        # In this folder, beside the other files, so that `tensorboard --logdir` of a folder of runs names them.
        self._events = SummaryWriter(str(folder), flush_secs=30)

    def write(self, rows: Iterable[Row]) -> None:
        """Adds rows, which are on disk when this returns."""
        for row in rows:
            self._rows.writerow({name: _field(value) for name, value in row.items()})
            for name, value in row.items():
                if name not in WHERE and math.isfinite(value):
                    self._events.add_scalar(f"{row['stage']}/{name}/seed{row['seed']}", float(value), row["update"])
        self._file.flush()

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()


class Unwritten:
    """Stands for `Scalars` in processes that write none."""

    def write(self, rows: Iterable[Row]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        # The last line of a run that was killed may be cut off.
        return [row for row in csv.DictReader(file) if row[COLUMNS[-1]] is not None]


def _field(value: object) -> object:
    """Floats to seven digits; empty where they are no number."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.7g}"
