"""Starting and stopping engines, with small servers in vLLM's place: nothing is left running, errors name remedies."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from fake_venv import DIES, NEVER_READY, STUBBORN, children, fake_venv, is_alive
from jaxroute.errors import InputError
from jaxroute.profiles import load_profile, parse_profile
from jaxroute.testbed import Testbed, TestbedConfig
from jaxroute.testbed import processes as processes_module
from jaxroute.testbed import testbed as testbed_module
from jaxroute.testbed.priority import group_niceness
from jaxroute.testbed.processes import take_ports

PROGRAM = """
import sys, time
from pathlib import Path
from jaxroute.profiles import load_profile
from jaxroute.testbed import Testbed, TestbedConfig
profile = load_profile("v100-32gb-llama2-7b")
config = TestbedConfig(profile=profile, instances=1, venv=Path(sys.argv[1]), folder=Path(sys.argv[2]))
with Testbed(config) as testbed:
    print(testbed.pids[0], flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _no_tokenizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(testbed_module, "model_folder", lambda: tmp_path / "model")


def config(tmp_path: Path, behaviour: str = "", **options: object) -> TestbedConfig:
    venv = fake_venv(tmp_path / "venv", behaviour)
    base = TestbedConfig(profile=load_profile("v100-32gb-llama2-7b"), instances=2, venv=venv, folder=tmp_path / "run")
    return dataclasses.replace(base, **options)  # type: ignore[arg-type]


def test_all_engines_answer_and_are_gone_afterwards(tmp_path: Path) -> None:
    with Testbed(config(tmp_path)) as testbed:
        assert len(set(testbed.urls)) == 2
        for url in testbed.urls:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                assert answer.status == 200
        pids = [*testbed.pids, *children([tmp_path / "run" / f"engine-{index}.log" for index in range(2)])]
        assert all(map(is_alive, pids))
        testbed.check()
        assert [len(steps) for steps in testbed.steps()] == [0, 0]
        assert testbed.traces == (tmp_path / "run" / "engine-0.csv", tmp_path / "run" / "engine-1.csv")
    assert not any(map(is_alive, pids))


def test_the_folder_has_the_emulated_profile(tmp_path: Path) -> None:
    with Testbed(config(tmp_path, instances=1, slow_down=2.0)) as testbed:
        assert parse_profile((tmp_path / "run" / "profile.json").read_text(), "run") == testbed.profile
    assert testbed.profile.coefficients_ms["W"] == 2 * load_profile("v100-32gb-llama2-7b").coefficients_ms["W"]


def test_a_folder_of_its_own_goes_with_the_testbed(tmp_path: Path) -> None:
    with Testbed(config(tmp_path, instances=1, folder=None)) as testbed:
        assert (testbed.folder / "engine-0.log").is_file()
    assert not testbed.folder.exists()


def test_engines_are_gone_after_an_error(tmp_path: Path) -> None:
    testbed = Testbed(config(tmp_path, instances=1))
    with pytest.raises(ZeroDivisionError), testbed:
        [pid] = testbed.pids
        raise ZeroDivisionError
    assert not is_alive(pid)


def test_an_engine_that_ignores_the_request_to_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testbed_module, "STOP_S", 0.3)
    with Testbed(config(tmp_path, STUBBORN)) as testbed:
        pids = [*testbed.pids, *children([testbed.folder / "engine-0.log", testbed.folder / "engine-1.log"])]
    assert not any(map(is_alive, pids))


def test_an_engine_that_dies_at_the_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)ended with code 3; its log says:.*ValueError: the cause"):
        Testbed(config(tmp_path, DIES)).__enter__()


def test_an_engine_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with Testbed(config(tmp_path)) as testbed:
        os.kill(testbed.pids[1], signal.SIGKILL)
        deadline = time.monotonic() + 10
        with pytest.raises(InputError, match=f"{testbed.urls[1]} ended with code -9"):
            while time.monotonic() < deadline:
                testbed.check()


def test_an_engine_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not ready within 0\.5 s"):
        Testbed(config(tmp_path, NEVER_READY, start_timeout_s=0.5)).__enter__()


def test_a_start_that_is_interrupted_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupt(engine: processes_module.Engine) -> bool:
        started.append(engine.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes_module.Engine, "is_healthy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Testbed(config(tmp_path)).__enter__()
    assert started and not is_alive(started[0])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_engines_die_with_their_testbed(tmp_path: Path, number: int) -> None:
    venv, folder = fake_venv(tmp_path / "venv"), tmp_path / "run"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM, str(venv), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        assert is_alive(pid)
        program.send_signal(number)
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(pid)
    # The server's own child stands for vLLM's engine process, which asks for the same; this one does not.
    for child in children([folder / "engine-0.log"]):
        os.kill(child, signal.SIGKILL)


def test_the_launcher_starts_nothing_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    launcher = Path(processes_module.__file__).parent / "engine" / "start.py"
    asked = [sys.executable, str(launcher), "1", sys.executable, "-c", "print('started')"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ended before its engine started" in done.stderr


def test_a_taken_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            take_ports(1, port)


def test_free_ports_are_all_different() -> None:
    assert len(set(take_ports(16, None))) == 16


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(InputError, match="run: cannot be made"):
        Testbed(config(tmp_path)).__enter__()


def test_a_missing_installation_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `make setup-vllm`"):
        Testbed(dataclasses.replace(config(tmp_path), venv=tmp_path / "nowhere")).__enter__()


def test_the_priority_of_this_process_is_given_back(tmp_path: Path) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with Testbed(config(tmp_path, instances=1)):
        pass
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


@pytest.mark.parametrize(("said", "niceness"), [("/autogroup-632 nice -10\n", "-10"), ("", None), (None, None)])
def test_a_session_may_be_in_no_scheduling_group(tmp_path: Path, said: str | None, niceness: str | None) -> None:
    if said is not None:
        (tmp_path / "autogroup").write_text(said)
    assert group_niceness(tmp_path / "autogroup") == niceness


def test_the_model_gets_the_settings_of_the_emulated_profile(tmp_path: Path) -> None:
    with Testbed(config(tmp_path, instances=1, slow_down=3.0)) as testbed:
        environment = Path(f"/proc/{testbed.pids[0]}/environ").read_text().split("\0")
    [given] = [line.split("=", 1)[1] for line in environment if line.startswith("JAXROUTE_STEP_MS=")]
    assert json.loads(given) == testbed.profile.coefficients_ms
