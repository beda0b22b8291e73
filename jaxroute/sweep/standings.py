"""What came of the trials of a sweep: their figures, the best of them, and the means over seeds."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxroute.output import csv_field, plain_json, report_paths, write_rows
from jaxroute.train.figures import Figures

RUNS, METRICS, LOG = "runs", "metrics.csv", "train.log"
RESULTS_CSV, RESULTS_JSON = "results.csv", "results.json"

Status = Literal["finished", "stopped early", "failed", "unfinished"]

FIGURES = tuple(field.name for field in dataclasses.fields(Figures))

MOST_NAME = 60
"""Characters of the name of a trial behind its number."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a training run is.

    Attributes:
      validations: so far.
      best: figures of its best validated policy; None before the first.
      stage, update: when that was.
      env_steps, seconds: of the run until its last validation.
    """

    validations: int
    best: Figures | None
    stage: str = ""
    update: int = 0
    env_steps: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Standing:
    """A trial at the end of a sweep.

    Attributes:
      name: of its run folder.
      over: its values, as TOML, by key.
      status: how it ended.
      progress: what it had reached.
      problem: why it failed, or empty.
    """

    name: str
    over: dict[str, str]
    status: Status
    progress: Progress
    problem: str = ""

    @property
    def score(self) -> float:
        """Of its best policy, less is better (see `Figures.score`); NaN without any."""
        return math.nan if self.progress.best is None else self.progress.best.score


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """Trials that differ in their seed only.

    Attributes:
      over: what they have in common.
      seeds: how many have a validated policy and did not fail.
      score: mean of their scores.
      e2e_mean: mean, least and most change of the mean E2E latency against round robin.
    """

    over: dict[str, str]
    seeds: int
    score: float
    e2e_mean: tuple[float, float, float]


def name_of(number: int, over: Mapping[str, str]) -> str:
    """Name of the run folder of a trial."""
    values = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in over.items())
    return f"{number:03d}-" + re.sub(r"[^A-Za-z0-9_=.,+-]+", "", values)[:MOST_NAME]


def progress_of(run: Path) -> Progress:
    """Of a run folder; nothing where none is there yet."""
    try:
        with (run / METRICS).open(newline="", encoding="utf-8") as file:
            # A line that is being written has no last field.
            rows = [row for row in csv.DictReader(file) if None not in row.values() and row["valid_incomplete"]]
    except (OSError, KeyError):
        return Progress(0, None)
    if not rows:
        return Progress(0, None)
    figures = [Figures(**{name: float(row[f"valid_{name}"] or "nan") for name in FIGURES}) for row in rows]
    best = min(range(len(rows)), key=lambda place: figures[place].score)
    return Progress(
        validations=len({(row["stage"], row["update"]) for row in rows}),
        best=figures[best],
        stage=rows[best]["stage"],
        update=int(rows[best]["update"]),
        env_steps=int(rows[-1]["env_steps"]),
        seconds=float(rows[-1]["seconds"]),
    )


def last_words(run: Path) -> str:
    """The last line that a training run said."""
    try:
        lines = (run / LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def best_of(standings: Sequence[Standing]) -> Standing | None:
    """The one with the best policy, of those that did not fail."""
    known = [each for each in standings if each.status != "failed" and not math.isnan(each.score)]
    return min(known, key=lambda each: each.score, default=None)


def over_seeds(standings: Sequence[Standing]) -> list[OverSeeds]:
    """Means over seeds, best first; empty where the sweep is over nothing but seeds, or over none."""
    if not all({"seed"} < set(each.over) for each in standings):
        return []
    alike: dict[tuple[tuple[str, str], ...], list[Standing]] = defaultdict(list)
    for each in standings:
        alike[tuple((key, value) for key, value in each.over.items() if key != "seed")].append(each)
    found = []
    for over, members in alike.items():
        known = [each for each in members if each.status != "failed" and each.progress.best is not None]
        changes = [each.progress.best.e2e_mean for each in known if each.progress.best is not None] or [math.nan]
        score = float(np.mean([each.score for each in known])) if known else math.nan
        found.append(OverSeeds(dict(over), len(known), score, (float(np.mean(changes)), min(changes), max(changes))))
    return sorted(found, key=lambda each: (math.isnan(each.score), each.score))


def write_standings(standings: Sequence[Standing], settings: Mapping[str, Any], folder: Path) -> None:
    """Writes results.csv and results.json.

    Raises:
      OSError: the folder cannot be written.
    """
    keys = list(dict.fromkeys(key for each in standings for key in each.over))
    header = ("trial", "status", *keys, "score", *FIGURES, "stage", "update", "env_steps", "seconds", "problem")
    best = best_of(standings)
    data = {
        "settings": settings,
        "best": None if best is None else {"trial": best.name, "run": f"{RUNS}/{best.name}", "over": best.over},
        "trials": [{**dataclasses.asdict(each), "score": each.score} for each in standings],
        "over_seeds": [dataclasses.asdict(each) for each in over_seeds(standings)],
    }
    with report_paths(folder, RESULTS_CSV, RESULTS_JSON) as (table, text):
        write_rows(table, header, (_fields(each, keys) for each in standings))
        text.write_text(json.dumps(plain_json(data), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _fields(each: Standing, keys: Sequence[str]) -> list[str]:
    progress = each.progress
    figures = [math.nan if progress.best is None else getattr(progress.best, name) for name in FIGURES]
    return [
        each.name,
        each.status,
        *(each.over.get(key, "") for key in keys),
        *(csv_field(value) for value in (each.score, *figures)),
        progress.stage,
        str(progress.update),
        str(progress.env_steps),
        csv_field(progress.seconds),
        each.problem,
    ]
