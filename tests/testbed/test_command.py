"""`jaxroute testbed` as a user meets it, with a small server in vLLM's place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fake_venv import fake_venv
from jaxroute.cli import main
from jaxroute.commands.testbed import steps_table
from jaxroute.testbed.engine.step_hold import COLUMNS
from jaxroute.testbed.trace import StepTrace


def trace(target_ms: list[float], work_ms: list[float]) -> StepTrace:
    zeros = dict.fromkeys(COLUMNS, np.zeros(len(target_ms), int))
    times = {"target_ms": np.array(target_ms), "work_ms": np.array(work_ms)}
    return StepTrace(**{**zeros, **times, "held_ms": np.maximum(target_ms, work_ms)})


def shown(*traces: StepTrace) -> str:
    console = Console(width=150)
    with console.capture() as capture:
        console.print(steps_table([f"http://127.0.0.1:{8101 + index}" for index in range(len(traces))], traces))
    return capture.get()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_the_engines_are_and_at_the_end_how_they_did(tmp_path: Path, number: int) -> None:
    fake_venv(tmp_path / ".venv-vllm")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "jaxroute", "testbed", "--instances", "2", "--base-port", str(8700 + number)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as program:
        assert program.stdout is not None
        greeting = ""
        while "Ctrl-C stops them" not in greeting:
            line = program.stdout.readline()
            assert line, greeting
            greeting += line
        program.send_signal(number)
        rest = program.stdout.read()
    assert program.returncode == 0
    for port in (8700 + number, 8701 + number):
        assert f"--backend http://127.0.0.1:{port}" in greeting
    assert f"curl http://127.0.0.1:{8700 + number}/v1/completions" in greeting
    assert "engine steps against the profile" in rest


def test_a_missing_installation_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jaxroute.testbed import vllm_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vllm_command, "VENV", "not-there")
    with pytest.raises(SystemExit) as stop:
        main(["testbed"])
    assert stop.value.code == 2
    assert "not installed there; run `make setup-vllm`" in capsys.readouterr().err


def test_a_scheduler_that_vllm_no_longer_has_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["testbed", "--scheduler", "prefill-first"])
    assert stop.value.code == 2
    assert "vLLM V1 has no prefill-first scheduler" in capsys.readouterr().err


def test_the_table_judges_by_the_share_of_overrun_steps() -> None:
    good, bad = trace([20.0] * 100, [3.0] * 98 + [30.0] * 2), trace([20.0] * 100, [3.0] * 97 + [30.0] * 3)
    assert "2.00%" in shown(good)
    assert "not valid" not in shown(good, good)
    assert "not valid: 3% or more overran" in shown(good, bad)


def test_an_engine_without_work_is_in_the_table() -> None:
    table = shown(trace([], []))
    assert "http://127.0.0.1:8101" in table
    assert "not valid" not in table
