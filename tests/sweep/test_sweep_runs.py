"""Sweeps under a real Ray Tune on this machine, of stand-ins for trainings and of real ones."""

from __future__ import annotations

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import sweeping

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")),
    reason="Ray Tune is not here: pip install 'jaxroute[sweep]'",
)


def begun(what: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, sweeping.__file__, what, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def standings_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return json.loads(out.strip().splitlines()[-1])


def lines_of(run: Path) -> list[str]:
    return (run / "metrics.csv").read_text().splitlines()[1:] if (run / "metrics.csv").exists() else []


def test_a_sweep_that_is_interrupted_goes_on_and_a_failure_does_not_lose_the_others(tmp_path: Path) -> None:
    process = begun("start", tmp_path)
    end = time.monotonic() + 300
    while not any(len(lines_of(run)) >= 3 for run in (tmp_path / "runs").glob("*")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    before = standings_of(process)
    assert len(before) < 6 or "unfinished" in {each["status"] for each in before}

    standings = standings_of(begun("resume", tmp_path))
    assert Counter(each["status"] for each in standings) == {"finished": 4, "failed": 2}
    for each in standings:
        clip = float(each["over"]["ppo.clip"])
        lines = lines_of(tmp_path / "runs" / each["name"])
        done = 2 if clip == 0.9 else 8
        # Each run went on where it was.
        assert [int(line.split(",")[1]) for line in lines] == list(range(1, done + 1))
        assert each["score"] == pytest.approx(-clip * done / 8)
        assert each["problem"] == ("jaxroute: training diverged" if clip == 0.9 else "")
    assert [each["name"] for each in standings] == sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert {tuple(each["over"].values()) for each in standings} == {
        (clip, seed) for clip in sweeping.AXES[0].values for seed in ("0", "1")
    }


def test_a_sweep_that_is_interrupted_before_its_trials_have_begun_names_them(tmp_path: Path) -> None:
    process = begun("start", tmp_path)
    end = time.monotonic() + 300
    # Ray has made their folders and starts their processes.
    while not any((tmp_path / "ray").glob("*_00000")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    standings = standings_of(process)
    assert {each["status"] for each in standings} == {"unfinished"}
    assert standings[0]["over"] == {"ppo.clip": "0.1", "seed": "0"}
    assert standings[0]["name"] == "000-clip=0.1,seed=0"


@pytest.mark.slow
def test_asha_stops_what_is_behind(tmp_path: Path) -> None:
    standings = standings_of(begun("asha", tmp_path))
    status = {each["over"]["ppo.clip"]: each["status"] for each in standings}
    assert status["0.4"] == "finished"
    assert "stopped early" in status.values()
    assert "failed" not in status.values()
    for each in standings:
        assert (each["progress"]["validations"] == 8) == (each["status"] == "finished")


@pytest.mark.slow
def test_the_command_trains_shows_a_table_and_names_the_best(tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    options = ["--config", "smoke", "--set", "evolution.generations=0", "ppo.total_steps=256", "--out", str(out)]
    over = ["--over", "ppo.learning_rate=1e-3,1e38", "seed=0,1", "--over", "reward.kind=latency"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxroute", "sweep", *options, *over], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    with (out / "results.csv").open(newline="") as file:
        rows = {row["trial"]: row for row in csv.DictReader(file)}
    assert Counter(row["status"] for row in rows.values()) == {"finished": 2, "failed": 2}
    data = json.loads((out / "results.json").read_text())
    assert data["best"]["over"]["ppo.learning_rate"] == "1e-3"
    assert f"best: {out / data['best']['run']}" in done.stdout
    assert "training diverged" in done.stdout
    assert (out / data["best"]["run"] / "policy" / "policy.json").is_file()
    best = float(rows[data["best"]["trial"]]["score"])
    assert best == min(float(row["score"]) for row in rows.values() if row["status"] == "finished")
    assert [each["seeds"] for each in data["over_seeds"]] == [2, 0]
