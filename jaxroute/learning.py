"""Training runs side by side: what each had learned when it ended."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError

SETTLED = 1 / 3
"""Share of a run's validations, the last ones, that stand for what it learned."""

MEAN, TAIL, TTFT, MAKESPAN = "valid_e2e_mean", "valid_e2e_p99", "valid_ttft_p99", "valid_makespan"


@dataclasses.dataclass(frozen=True)
class Learned:
    """A training run at its end; changes against round robin on validation requests, %.

    Attributes:
      label: of the run.
      seeds: runs side by side.
      env_steps: router intervals simulated, of one seed.
      seconds: it took, all seeds together.
      e2e_mean: of each seed, mean over its last validations, of the mean E2E.
      e2e_p99, ttft_p99, makespan: the same of these, over all seeds.
      hold_share: of the decisions in the last update, mean over the seeds; NaN where it was not counted.
    """

    label: str
    seeds: int
    env_steps: int
    seconds: float
    e2e_mean: tuple[float, ...]
    e2e_p99: float
    ttft_p99: float
    makespan: float
    hold_share: float


def learned(label: str, path: Path) -> Learned:
    """Of the `metrics.csv` of a run.

    Raises:
      InputError: no such file, not one of ours, or no validation in it.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give the folder of a training run") from error
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        for row in rows:
            if row[MEAN]:
                for column in (MEAN, TAIL, TTFT, MAKESPAN):
                    found[row["seed"]][column].append(100 * float(row[column]))
        holds = [float(row["hold_share"]) for row in rows if row["hold_share"] and row["update"] == rows[-1]["update"]]
        env_steps, seconds = (int(rows[-1]["env_steps"]), float(rows[-1]["seconds"])) if rows else (0, 0.0)
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is not the metrics.csv of a training run ({error})") from error
    if not found:
        raise InputError(f"{path}: holds no validation yet; let the run go on (jaxroute train --resume)")

    def settled(values: list[float]) -> float:
        return float(np.mean(values[-max(1, round(SETTLED * len(values))) :]))

    def over_seeds(column: str) -> float:
        return float(np.mean([settled(each[column]) for each in found.values()]))

    return Learned(
        label=label,
        seeds=len(found),
        env_steps=env_steps,
        seconds=seconds,
        e2e_mean=tuple(settled(each[MEAN]) for each in found.values()),
        e2e_p99=over_seeds(TAIL),
        ttft_p99=over_seeds(TTFT),
        makespan=over_seeds(MAKESPAN),
        hold_share=float(np.mean(holds)) if holds else float("nan"),
    )
