"""Learning curves of part (j): what the validations of a training run say."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.learning import MEAN, SETTLED


@dataclasses.dataclass(frozen=True)
class Curve:
    """The validations of a training run: change of the mean E2E against round robin, %.

    Attributes:
      label: of the run.
      path: its `metrics.csv`.
      gains: seed -> [validations].
      first_steps: router intervals of a seed at the first validation.
      exploration: [updates] chance of a random action, mean over the seeds; empty where there is none.
      guidance: [updates] weight of the mixing penalty; likewise.
      hold_share: of the decisions in the last update; NaN where it was not counted.
    """

    label: str
    path: Path
    gains: Mapping[str, np.ndarray]
    first_steps: int
    exploration: np.ndarray
    guidance: np.ndarray
    hold_share: float

    def first(self) -> np.ndarray:
        """[seeds] at the first validation."""
        return np.asarray([each[0] for each in self.gains.values()])

    def whole(self) -> np.ndarray:
        """[seeds] mean over all validations: the lower, the sooner it learned."""
        return np.asarray([each.mean() for each in self.gains.values()])

    def settled(self) -> np.ndarray:
        """[seeds] mean over the last third."""
        return np.asarray([each[-max(1, round(SETTLED * len(each))) :].mean() for each in self.gains.values()])


MEASURES = (("at the first validation", Curve.first), ("mean of all", Curve.whole), ("last third", Curve.settled))


def read_curve(label: str, path: Path) -> Curve:
    """Reads the `metrics.csv` of a finished run.

    Raises:
      InputError: nothing was validated in it.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    columns: dict[str, dict[int, list[float]]] = {"exploration": defaultdict(list), "penalty_weight": defaultdict(list)}
    steps, holds, last = [], [], 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last = int(row["update"])
            if row[MEAN]:
                gains[row["seed"]].append(100 * float(row[MEAN]))
                steps.append(int(row["env_steps"]))
            for column, values in columns.items():
                if row.get(column):
                    values[last].append(float(row[column]))
            if row.get("hold_share"):
                holds.append((last, float(row["hold_share"])))
    if not gains:
        raise InputError(f"{path}: holds no validation; train for longer (--train-steps)")
    means = {name: np.asarray([np.mean(each) for each in values.values()]) for name, values in columns.items()}
    at_end = [share for update, share in holds if update == last]
    return Curve(
        label=label,
        path=path,
        gains={seed: np.asarray(values) for seed, values in gains.items()},
        first_steps=min(steps),
        exploration=means["exploration"],
        guidance=means["penalty_weight"],
        hold_share=float(np.mean(at_end)) if at_end else float("nan"),
    )
