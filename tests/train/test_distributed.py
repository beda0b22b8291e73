"""Several processes that train together; whole runs of them are in test_distributed_runs.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import together
import uneven
from processes import ended, free_port, started
from tiny import states_of

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.train import stage
from jaxroute.train.distributed import agreed, by_first, check_same, is_first, joined
from jaxroute.train.load_config import load_config
from jaxroute.train.ppo import make_learner


def both(what: str, folder: Path, devices: int = 4) -> list[subprocess.Popen[str]]:
    """Two processes that know of each other."""
    script = [together.__file__, what, f"127.0.0.1:{free_port()}", "2"]
    return [started([*script, str(number), str(folder)], devices) for number in range(2)]


def run_both(what: str, folder: Path) -> None:
    for code, text in ended(both(what, folder)):
        assert code == 0, text


def waiting(folder: Path) -> list[subprocess.Popen[str]]:
    """Two that go round and round together."""
    processes = both("wait", folder, devices=1)
    end = time.monotonic() + 200
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < end and all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.1)
    return processes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes were told by each other."""
    folder = tmp_path_factory.mktemp("together")
    run_both("agree", folder)
    return folder


def told(folder: Path, process: int) -> dict[str, Any]:
    return json.loads((folder / f"{process}.json").read_text())


@pytest.mark.slow
def test_two_processes_learn_what_one_device_does(tmp_path: Path) -> None:
    run_both("learn", tmp_path)
    env, params = uneven.problem()
    learner = make_learner(uneven.config(), (env,))
    before = states_of(learner, params, uneven.SEED)
    first = uneven.weights_of(before, 0)
    alone = uneven.weights_of(uneven.trained(learner, params, before, 1), 0)
    assert np.abs(alone - first).max() > 0.03
    np.testing.assert_allclose(np.load(tmp_path / "weights.npz")["weights"], alone, atol=1e-4)


def test_lanes_are_spread_over_the_devices_of_both_processes(two: Path) -> None:
    for process in range(2):
        found = told(two, process)
        assert found["devices"] == 8
        assert found["here"] == [[2 * lane, 2 * lane + 1] for lane in range(4 * process, 4 * process + 4)]
        assert found["whole"] == list(range(16))


def test_what_one_process_wants_or_refuses_counts_for_all(two: Path) -> None:
    for process in range(2):
        found = told(two, process)
        assert found["first"] == (process == 0)
        assert (found["none"], found["one"]) == (False, True)
        assert found["refused"] == "the first one says nö"
        assert found["differs"].startswith("process 1 and process 0 differ in their numbers; ")


def test_one_that_is_interrupted_stops_both_in_order(tmp_path: Path) -> None:
    processes = waiting(tmp_path)
    processes[1].send_signal(signal.SIGTERM)
    for code, text in ended(processes):
        assert code == 130, text


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_dies_ends_the_other_which_says_so(victim: int, tmp_path: Path) -> None:
    processes = waiting(tmp_path)
    processes[victim].kill()
    code, text = ended(processes)[1 - victim]
    assert code not in (0, 130)
    assert "another one is gone" in text or "another task died" in text or "coordination service" in text.lower()


def test_a_process_alone_agrees_with_itself() -> None:
    def refuse() -> None:
        raise InputError("no")

    with joined(None, "test"):
        assert is_first()
        assert (agreed(True), agreed(False)) == (True, False)
        check_same("anything", b"")
        with pytest.raises(InputError, match=r"^no$"):
            by_first(refuse)


def test_lanes_that_leave_devices_of_several_processes_idle_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("smoke", ["fleets.0.lanes=6", "evolution.generations=0"])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert stage.devices_for(config) == 3
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match=r"the 2 processes have 4 devices, of which the run could use 3; make fleets"):
        stage.devices_for(config)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--coordinator", "10.0.0.1:5555"], "belong together"),
        (["--coordinator", "10.0.0.1", "--processes", "2", "--process", "0"], "must be HOST:PORT"),
        (["--coordinator", "a:1", "--processes", "2", "--process", "2"], "numbered from 0 to 1"),
        (["--distributed", "auto", "--process", "1"], "takes no --coordinator"),
        (["--join-timeout", "0"], "must be at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--config", "smoke", "--out", str(tmp_path / "run"), *options])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_no_cluster_around_is_said(tmp_path: Path) -> None:
    assert "SLURM_JOB_ID" not in os.environ
    command = ["-m", "jaxroute", "train", "--config", "smoke", "--out", str(tmp_path / "run"), "--distributed", "auto"]
    ((code, text),) = ended([started(command, devices=1)])
    assert code == 2
    assert text.startswith("jaxroute: --distributed auto: no cluster that jax knows")
    assert len(text.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
