"""The learning curve of a predictor's training on disk: `metrics.csv`, a row an epoch, and TensorBoard's files."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

from jaxroute.output import atomic_path

FILE = "metrics.csv"
COLUMNS = (
    "epoch",
    "update",
    "seconds",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "val_top1_llm",
    "val_top1_hint",
    "val_top1_plain",
    "val_task_top1",
)


class Curve:
    """Writes rows as they come."""

    def __init__(self, folder: Path, *, epochs: int) -> None:
        """Opens the files; rows after the first `epochs`, which are to come again, are left out."""
        path = folder / FILE
        kept = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                whole = [row for row in csv.DictReader(file) if row[COLUMNS[-1]] is not None]
            kept = [row for row in whole if int(row["epoch"]) <= epochs]
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
        self._events = SummaryWriter(str(folder), flush_secs=30)

    def batch(self, update: int, loss: float) -> None:
        """Adds the loss of an update to TensorBoard's."""
        self._events.add_scalar("predictor/batch_loss", loss, update)

    def write(self, row: Mapping[str, float]) -> None:
        """Adds the row of an epoch, which is on disk when this returns."""
        self._rows.writerow({name: _field(row.get(name, math.nan)) for name in COLUMNS})
        self._file.flush()
        for name, value in row.items():
            if name not in ("epoch", "update") and math.isfinite(value):
                self._events.add_scalar(f"predictor/{name}", float(value), int(row["update"]))

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        self._events.close()


def _field(value: float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)
