"""Whole runs of a tiny configuration."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.policies.folder import read_policy
from jaxroute.train import loop, ppo_stage, run_folder
from jaxroute.train.config import TrainConfig
from jaxroute.train.interrupt import stop_requests
from jaxroute.train.load_config import load_config, to_toml
from jaxroute.train.loop import Training
from jaxroute.train.report import Metrics
from jaxroute.train.scalars import COLUMNS, FILE, Scalars
from jaxroute.train.stage import call_length, is_validated

CONFIG = load_config("smoke", ["seeds=2", "seed=5", "evolution.generations=2"])
"""Six updates of two seeds, and two generations."""


class Watching:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, int, int]] = []
        self.lines: list[str] = []

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        assert np.isfinite(gain)
        self.moves.append((stage, done, total))

    def said(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module", autouse=True)
def calls_of_three() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_stage, "CALL_STEPS_ON_CPU", 3 * 2 * 4 * 32)
        yield


def train(config: TrainConfig, out: Path, stop: Callable[[], bool] = lambda: False) -> tuple[bool, Training, Watching]:
    watching = Watching()
    training = Training(config, out, watching)
    if not (out / run_folder.CONFIG).exists():
        run_folder.begin(out, config)
    return training.run(stop), training, watching


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training, Watching]:
    out = tmp_path_factory.mktemp("whole") / "run"
    finished, training, watching = train(CONFIG, out)
    assert finished
    return out, training, watching


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which three updates are done."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    finished, _, watching = train(CONFIG, out, lambda: True)
    assert not finished
    assert watching.moves == [("ppo", 3, 6)]
    return out


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / FILE).open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def last_checkpoint(out: Path) -> tuple[int, Any]:
    manager = ocp.CheckpointManager((out / run_folder.CHECKPOINTS).resolve())
    step = manager.latest_step()
    saved = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    manager.close()
    return step, saved.state


def test_a_run_leaves_all_of_its_files(whole: tuple[Path, Training, Watching]) -> None:
    out, training, watching = whole
    names = {path.name for path in out.iterdir() if "tfevents" not in path.name}
    assert names == {"config.toml", "metrics.csv", "checkpoints", "policy", "learning_curve.png"}
    assert any("tfevents" in path.name for path in out.iterdir())
    assert load_config(str(out / "config.toml")) == CONFIG
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["7", "8"]
    assert watching.moves == [("ppo", 3, 6), ("ppo", 6, 6), ("evolution", 1, 2), ("evolution", 2, 2)]
    assert len(watching.lines) == 2 * 2 + 2
    policy = read_policy(out / "policy")
    assert training.best is not None and training.best.figures is not None
    assert policy.training["valid_e2e_mean"] == training.best.figures.e2e_mean
    assert policy.training["seed"] in (5, 6)
    assert policy.training["env_steps"] == training.best.env_steps


def test_every_update_of_every_seed_has_a_row_and_validated_ones_have_figures(
    whole: tuple[Path, Training, Watching],
) -> None:
    rows = rows_of(whole[0])
    assert list(rows[0]) == list(COLUMNS)
    where = [(row["stage"], int(row["update"]), int(row["seed"])) for row in rows]
    assert where[:12] == [("ppo", update, seed) for update in range(1, 7) for seed in (5, 6)]
    assert [each[:2] for each in where[12:]] == [("evolution", 1), ("evolution", 2)]
    assert [int(row["env_steps"]) for row in rows[:12:2]] == [128 * update for update in range(1, 7)]
    assert [bool(row["valid_e2e_mean"]) for row in rows] == [update in (3, 6) for _, update, _ in where[:12]] + [
        True
    ] * 2
    assert rows[0]["entropy"] != rows[1]["entropy"]


def test_the_exported_policy_is_the_best_of_all_validations(whole: tuple[Path, Training, Watching]) -> None:
    out, training, _ = whole
    scores = [
        float(row["valid_e2e_mean"]) + max(0.0, float(row["valid_e2e_p99"])) + 100 * float(row["valid_incomplete"])
        for row in rows_of(out)
        if row["valid_e2e_mean"]
    ]
    assert training.best is not None and training.best.figures is not None
    assert training.best.figures.score == pytest.approx(min(scores), abs=1e-6)


def test_a_run_that_was_stopped_twice_ends_as_if_it_had_not(
    whole: tuple[Path, Training, Watching], stopped: Path, tmp_path: Path
) -> None:
    stopped = Path(shutil.copytree(stopped, tmp_path / "run"))
    calls = iter([False, True])
    finished, _, watching = train(CONFIG, stopped, lambda: next(calls))
    assert not finished
    assert watching.moves == [("ppo", 6, 6), ("evolution", 1, 2)]
    finished, training, watching = train(CONFIG, stopped)
    assert finished
    assert watching.moves == [("evolution", 2, 2)]
    assert rows_of(stopped) == rows_of(whole[0])
    (step, tree), (other_step, other) = last_checkpoint(stopped), last_checkpoint(whole[0])
    assert step == other_step == 8
    chex.assert_trees_all_equal(tree, other)
    for name in ("policy.json", "policy.safetensors"):
        assert (stopped / "policy" / name).read_bytes() == (whole[0] / "policy" / name).read_bytes()
    assert training.best is not None and training.best.facts() == whole[1].best.facts()


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoint_and_policy(stopped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    wild = dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, learning_rate=1e38))
    with pytest.raises(InputError, match=r"^training diverged: .* by ppo update 6; lower ppo.learning_rate") as caught:
        train(wild, out)
    assert "\n" not in str(caught.value)
    assert last_checkpoint(out)[0] == 3
    assert (out / "policy" / "policy.json").read_bytes() == (stopped / "policy" / "policy.json").read_bytes()
    assert [row["update"] for row in rows_of(out)] == ["1", "1", "2", "2", "3", "3"]


def test_the_metrics_of_an_update_are_scalars(
    whole: tuple[Path, Training, Watching], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stopped: Path
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    seen: list[Any] = []
    check = ppo_stage.PpoStage.check
    monkeypatch.setattr(ppo_stage.PpoStage, "check", lambda self, *given: seen.append(given[1]) or check(self, *given))
    train(CONFIG, out, lambda: True)
    (metrics,) = seen
    assert isinstance(metrics, Metrics)
    assert all(isinstance(values, np.ndarray) and values.shape == (3, 2) for values in metrics)
    assert sum(values.nbytes for values in metrics) / (3 * 2) < 1024


def test_a_checkpoint_of_another_network_is_refused(stopped: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "run"))
    network = dataclasses.replace(CONFIG.network, hidden=(9,))
    with pytest.raises(InputError, match=r"does not fit the run's config.toml"):
        train(dataclasses.replace(CONFIG, network=network), out)


def test_rows_after_the_checkpoint_and_cut_off_ones_are_left_out(tmp_path: Path) -> None:
    row = {"env_steps": 1, "seed": 0, "seconds": 0.5}
    first = Scalars(tmp_path, stage_order=loop.STAGES, stage="ppo", update=0)
    first.write({**row, "stage": "ppo", "update": update, "gain": np.float64(1 / 3)} for update in (1, 2, 3))
    first.write([{**row, "stage": "evolution", "update": 1, "cost": float("nan")}])
    first.close()
    with (tmp_path / FILE).open("a") as file:
        file.write("evolution,2,1")
    again = Scalars(tmp_path, stage_order=loop.STAGES, stage="ppo", update=2)
    again.close()
    found = rows_of(tmp_path)
    assert [(each["stage"], each["update"], each["gain"]) for each in found] == [
        ("ppo", "1", "0.3333333"),
        ("ppo", "2", "0.3333333"),
    ]


@pytest.mark.parametrize(
    ("total", "wanted", "expected"), [(100, 4, 4), (610, 4, 5), (611, 4, 4), (6, 50, 6), (5, 0, 1), (97, 30, 30)]
)
def test_calls_are_of_about_the_length_that_is_wanted_and_equal_where_possible(
    total: int, wanted: int, expected: int
) -> None:
    assert call_length(total, wanted) == expected


def test_a_stage_is_validated_twenty_times_and_at_its_end() -> None:
    ends = range(4, 405, 4)
    assert [done for done in ends if is_validated(done - 4, done, 404)] == [*range(20, 401, 20), 404]
    assert is_validated(2, 3, 3) and is_validated(0, 1, 3)


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["train", *options])
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.strip())
    return line


def test_options_that_are_missing_or_contradict_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = str(tmp_path / "run")
    for options in ((), ("--config", "smoke"), ("--out", out), ("--set", "seed=1")):
        assert refused(capsys, *options).startswith("jaxroute: give --config and --out to start a run, or --resume")
    for options in (("--config", "smoke"), ("--out", out), ("--set", "seed=1")):
        assert refused(capsys, "--resume", out, *options).startswith("jaxroute: --resume goes on with the run as it")
    assert f"--resume {out}: holds no training run" in refused(capsys, "--resume", out)
    assert "--set seed is -1" in refused(capsys, "--config", "smoke", "--out", out, "--set", "seed=3", "seed=-1")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_and_a_file_are_not_written_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(to_toml(CONFIG))
    line = refused(capsys, "--config", "smoke", "--out", str(tmp_path))
    assert line.endswith(f"go on with it by --resume {tmp_path}, or give a new folder")
    assert "is a file" in refused(capsys, "--config", "smoke", "--out", str(tmp_path / "config.toml"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_an_interrupted_run_says_how_to_go_on_and_exits_with_130(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TrainConfig] = []

    class Interrupted:
        def __init__(self, config: TrainConfig, out: Path, watcher: object) -> None:
            given.append(config)

        def run(self, stop: Callable[[], bool]) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            return not stop()

    monkeypatch.setattr(loop, "Training", Interrupted)
    options = ["--set", "seed=3", "workloads.tables=1", "--set", "name=other"]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "smoke", "--out", str(tmp_path / "run"), *options])
    assert stop.value.code == 130
    assert f"go on with: jaxroute train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert (given[0].seed, given[0].workloads.tables, given[0].name) == (3, 1, "other")
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(tmp_path / "run")])
    assert given[1] == given[0]
