"""What came of the trials of a sweep."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from jaxroute.sweep.standings import (
    Progress,
    Standing,
    best_of,
    last_words,
    name_of,
    over_seeds,
    progress_of,
    write_standings,
)
from jaxroute.train.figures import UNFINISHED, Figures

HEADER = (
    "stage,update,env_steps,seed,seconds,gain,"
    "valid_e2e_mean,valid_e2e_p99,valid_ttft_p99,valid_makespan,valid_incomplete"
)


def standing(name: str, mean: float, status: str = "finished", **over: str) -> Standing:
    best = None if math.isnan(mean) else Figures(mean, -0.1, 0.0, 0.0, 0.0)
    return Standing(name, over, status, Progress(3, best, "ppo", 4, 512, 1.5))


def test_progress_is_the_best_of_all_validations(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == Progress(0, None)
    lines = [
        "ppo,1,128,0,0.5,0.1,,,,,",
        "ppo,2,256,0,1,0.1,-0.02,0.01,0,0,0",
        "ppo,2,256,1,1,0.1,-0.03,-0.01,0,0,0",
        "ppo,3,384,0,1.5,0.1,-0.05,-0.01,0,0,0.5",
        "evolution,1,900,0,2.5,,,,,,1",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join([HEADER, *lines, "evolution,2,9"]))
    found = progress_of(tmp_path)
    assert found.best == Figures(-0.03, -0.01, 0.0, 0.0, 0.0)
    assert (found.validations, found.stage, found.update) == (3, "ppo", 2)
    assert (found.env_steps, found.seconds) == (900, 2.5)
    (tmp_path / "metrics.csv").write_text("\n".join([HEADER, lines[-1]]))
    only = progress_of(tmp_path).best
    assert only is not None and only.score == UNFINISHED


def test_the_best_did_not_fail_and_means_are_over_seeds() -> None:
    standings = [
        standing("000", -0.1, reward="a", seed="0"),
        standing("001", -0.3, reward="a", seed="1"),
        standing("002", -0.25, "stopped early", reward="b", seed="0"),
        standing("003", -0.9, "failed", reward="b", seed="1"),
        standing("004", math.nan, "unfinished", reward="c", seed="0"),
    ]
    best = best_of(standings)
    assert best is not None and best.name == "001"
    b, a, c = over_seeds(standings)
    assert (b.over, b.seeds, b.e2e_mean) == ({"reward": "b"}, 1, (-0.25, -0.25, -0.25))
    assert (a.over, a.seeds) == ({"reward": "a"}, 2)
    assert a.e2e_mean == pytest.approx((-0.2, -0.3, -0.1))
    assert (c.seeds, math.isnan(c.score)) == (0, True)
    assert over_seeds([standing("000", -0.1, seed="0")]) == []
    assert over_seeds([standing("000", -0.1, reward="a")]) == []
    assert best_of([standings[3], standings[4]]) is None


def test_results_are_a_table_and_json(tmp_path: Path) -> None:
    failed = Standing("001-seed=1", {"seed": "1"}, "failed", Progress(0, None), "no memory")
    write_standings([standing("000-seed=0", -0.1, seed="0"), failed], {"samples": 1}, tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["trial"], row["status"], row["seed"], row["e2e_mean"]) for row in rows] == [
        ("000-seed=0", "finished", "0", "-0.1000000"),
        ("001-seed=1", "failed", "1", ""),
    ]
    assert rows[1]["problem"] == "no memory"
    data = json.loads((tmp_path / "results.json").read_text())
    assert data["best"] == {"trial": "000-seed=0", "run": "runs/000-seed=0", "over": {"seed": "0"}}
    assert data["settings"] == {"samples": 1}
    assert [each["score"] for each in data["trials"]] == [-0.1, None]


def test_names_say_the_values_and_are_safe_for_a_folder() -> None:
    name = name_of(7, {"ppo.learning_rate": "3e-4", "workloads.names": '["five-task", "/etc"]'})
    assert name == "007-learning_rate=3e-4,names=five-task,etc"
    assert len(name_of(0, {"name": "x" * 500})) < 80


def test_last_words_are_the_last_line_that_is_not_empty(tmp_path: Path) -> None:
    assert last_words(tmp_path) == ""
    (tmp_path / "train.log").write_text("a\n  jaxroute: training diverged \n\n")
    assert last_words(tmp_path) == "jaxroute: training diverged"
