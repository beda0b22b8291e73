"""Whole training runs in two processes on this machine: as a user starts, stops, loses and goes on with them."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from processes import alone, ended, free_port, started, training, trainings
from safetensors.numpy import load_file

from jaxroute.train.distributed import HEARTBEAT_S
from jaxroute.train.scalars import FILE

pytestmark = pytest.mark.slow

CONFIG = (
    "--config", "smoke", "--set", "fleets.0.lanes=8", "ppo.total_steps=2048", "evolution.generations=2",
    "evolution.pairs=4",
)  # fmt: skip
"""Eight updates and two generations, both over eight devices."""

LONG = ("--config", "smoke", "--set", "fleets.0.lanes=8", "ppo.total_steps=2000000", "evolution.generations=0")
"""Some minutes."""

LOOSE = {"rtol": 2e-2, "atol": 2e-3}
"""What rounding makes of a figure after all updates."""


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / FILE).open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def check_alike(one: Path, other: Path) -> None:
    """Two runs that differ by rounding only."""
    for row, expected in zip(rows_of(one), rows_of(other), strict=True):
        assert [name for name, value in row.items() if value] == [name for name, value in expected.items() if value]
        for name, value in expected.items():
            if value and name != "stage":
                np.testing.assert_allclose(float(row[name]), float(value), **LOOSE, err_msg=name)
    found, wanted = (load_file(run / "policy" / "policy.safetensors") for run in (one, other))
    for layer, expected in wanted.items():
        np.testing.assert_allclose(found[layer], expected, **LOOSE, err_msg=layer)


def until(condition: Callable[[], bool], seconds: float, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Waits until something is the case while the processes run; where it is not to be, none of them is left behind."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            pytest.fail(f"not the case while they ran: {ended(processes)}")
        time.sleep(0.1)


def until_updates(out: Path, updates: int, processes: Sequence[subprocess.Popen[str]]) -> None:
    """Waits until so many updates are on disk."""
    until(lambda: (out / FILE).exists() and len(rows_of(out)) >= updates, 400, processes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "two"
    for number, (code, text) in enumerate(ended(trainings(*CONFIG, "--out", str(out)))):
        assert code == 0, text
        assert ("written to" in text) == (number == 0)
    return out


@pytest.mark.parametrize("devices", [8, 1])
def test_two_processes_train_what_one_does(whole: Path, tmp_path: Path, devices: int) -> None:
    out = tmp_path / "one"
    code, text = training(*CONFIG, "--out", str(out), devices=devices)
    assert code == 0, text
    assert alone(out) == alone(whole)
    assert (out / "config.toml").read_text() == (whole / "config.toml").read_text()
    check_alike(whole, out)


def test_an_interruption_of_one_process_saves_and_ends_both_and_both_go_on_as_if_it_had_not_been(
    whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    processes = trainings(*LONG, "--out", str(out))
    until_updates(out, 3, processes)
    processes[1].send_signal(signal.SIGINT)
    (code, text), (other, _) = ended(processes)
    assert (code, other) == (130, 130), text
    assert f"go on with: jaxroute train --resume {out}" in text
    done = len(rows_of(out))

    processes = trainings("--resume", str(out))
    until_updates(out, done + 3, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert [code for code, _ in ended(processes)] == [130, 130]
    rows = rows_of(out)
    assert [int(row["update"]) for row in rows] == list(range(1, len(rows) + 1))

    again = tmp_path / "again"
    processes = trainings(*LONG, "--out", str(again))
    until_updates(again, done + 3, processes)
    processes[0].send_signal(signal.SIGINT)
    ended(processes)
    both = min(len(rows), len(rows_of(again)))
    assert both > done
    assert rows[:both] == rows_of(again)[:both]


def test_another_number_of_processes_goes_on_and_says_so(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    processes = trainings(*LONG, "--out", str(out))
    until_updates(out, 3, processes)
    processes[0].send_signal(signal.SIGINT)
    ended(processes)
    done = len(rows_of(out))
    process = started(["-m", "jaxroute", "train", "--resume", str(out)], devices=8)
    until_updates(out, done + 2, [process])
    process.send_signal(signal.SIGINT)
    ((code, text),) = ended([process])
    assert code == 130
    assert "was on 8 devices of 2 processes, goes on over 8 devices of 1 processes" in text


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    tmp_path: Path, victim: int
) -> None:
    out = tmp_path / "run"
    processes = trainings(*LONG, "--out", str(out))
    saved = out / "checkpoints"
    until(lambda: saved.exists() and any(path.name.isdecimal() for path in saved.iterdir()), 400, processes)
    processes[victim].kill()
    killed = time.monotonic()
    results = ended(processes)
    # At once where they sum; where they wait for one another otherwise, once it has not been heard of.
    assert time.monotonic() - killed < HEARTBEAT_S + 30
    code, text = results[1 - victim]
    assert code not in (0, 130), text
    assert "--resume" in text or "another task died" in text, text
    processes = trainings("--resume", str(out))
    # One more than there were: before, they may not be listening for Ctrl-C yet.
    until_updates(out, len(rows_of(out)) + 1, processes)
    for process in processes:
        process.send_signal(signal.SIGINT)
    assert [code for code, _ in ended(processes)] == [130, 130]


def test_processes_that_differ_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for code, text in ended(trainings(*CONFIG, "--out", str(out), own=((), ("--set", "ppo.clip=0.3")))):
        assert code == 2
        assert "process 1 and process 0 differ in the configuration" in text
    assert not out.exists()


def test_a_folder_that_holds_a_run_is_refused_in_every_process(whole: Path) -> None:
    before = (whole / FILE).read_bytes()
    for code, text in ended(trainings(*CONFIG, "--out", str(whole))):
        assert code == 2
        assert f"jaxroute: --out {whole}: holds a training run; go on with it by --resume" in text
    assert (whole / FILE).read_bytes() == before


def test_a_process_that_finds_no_other_says_so(tmp_path: Path) -> None:
    join = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process"]
    command = ["-m", "jaxroute", "train", *CONFIG, "--out", str(tmp_path / "run"), "--join-timeout", "3", *join]
    (first, told), (code, text) = (ended([started([*command, process], devices=1)])[0] for process in ("0", "1"))
    assert code == 2
    assert "jaxroute: process 1 could not join the others at 127.0.0.1" in text
    # This one is ended by JAX.
    assert first not in (0, 2)
    assert told.startswith("process 0 of 2 waits for the others at 127.0.0.1")
    assert not (tmp_path / "run").exists()
