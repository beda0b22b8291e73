"""Both commands on two real vLLM engines."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.testbed.vllm_command import find_venv

pytestmark = pytest.mark.live


@pytest.fixture(autouse=True)
def _installed() -> None:
    try:
        find_venv(None)
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """48 requests whose KV tokens are more than two engines of 3,072 tokens have."""
    rng = np.random.default_rng(0)
    arrival = np.cumsum(rng.exponential(1 / 8, 48))
    rows = zip(arrival, rng.integers(100, 900, 48), rng.integers(40, 160, 48), strict=True)
    path = tmp_path / "trace.csv"
    text = "".join(f"{time:.4f},{prompt},{output}\n" for time, prompt, output in rows)
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{text}")
    return path


def run(command: str, trace: Path, out: Path, *options: str) -> None:
    fleet = ("--instances", "2", "--kv-tokens", "3072", "--requests", "48", "--rate", "8")
    main([command, "--workload", str(trace), "--out", str(out), *fleet, *options])


def test_the_simulator_is_near_real_engines_that_preempt(trace, tmp_path):
    run("fidelity", trace, tmp_path, "--policy", "round-robin,gated-central-queue")
    runs = json.loads((tmp_path / "fidelity.json").read_text())["runs"]
    assert [each["policy"] for each in runs] == ["round-robin", "gated-central-queue"]
    assert all(each["steps"] > 100 for each in runs)
    if faults := [fault for each in runs for fault in each["faults"]]:
        pytest.skip(f"the machine is too busy for a measurement: {faults[0]}")
    first, held = runs
    live, simulated = (sum(first["preemptions"][which]) for which in ("live", "simulated"))
    assert live > 3 and abs(live - simulated) <= 3
    assert sum(held["preemptions"]["live"]) < live
    for each in runs:
        assert abs(each["e2e"]["error_percent"]["mean"]) < 2 and each["e2e"]["correlation"] > 0.98
        assert abs(each["tbt"]["error_percent"]["mean"]) < 4


def test_routers_take_turns_on_real_engines(trace, tmp_path):
    program = shutil.which("vllm-router")
    ways = ["direct:round-robin", "jaxroute:default", "jaxroute:default+fcfs"]
    ways += ["vllm-router:round_robin"] if program else []
    run("compare-live", trace, tmp_path, "--rounds", "1", "--ways", ",".join(ways))
    [contest] = json.loads((tmp_path / "comparison.json").read_text())["contests"]
    assert sorted(each["way"] for each in contest["runs"]) == sorted(ways)
    if faults := [fault for each in contest["runs"] for fault in each["faults"]]:
        pytest.skip(f"the machine is too busy for a measurement: {faults[0]}")
    for name in contest["simulated"]:
        [predicted] = contest["simulated"][name]["e2e_mean_s"]
        assert contest["live"][name]["e2e_mean_s"]["value"] == pytest.approx(predicted, rel=0.15)
