"""`ray.serve.llm` on real vLLM engines for CPU, routed by the shipped policy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.testbed.vllm_command import find_venv

HERE = Path(__file__).parent

pytestmark = pytest.mark.live


@pytest.fixture
def python() -> Path:
    """The interpreter of the environment that holds vLLM, with Ray in it too."""
    try:
        found = find_venv(None) / "bin" / "python"
    except InputError as error:
        pytest.skip(str(error))
    if subprocess.run([found, "-c", "import ray.serve.llm"], capture_output=True).returncode:
        pytest.skip(
            "no Ray beside vLLM: .venv-vllm/bin/pip install 'ray[serve]==2.60.0' jsonref jsonschema pandas pyarrow"
        )
    return found


def test_real_engines_in_replicas_are_routed_by_the_shipped_policy(python: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "compare_ray_routers.py"), "--python", str(python), "--out", str(tmp_path)]
    options = {"instances": 2, "requests": 24, "rate": 4, "rounds": 1, "routers": "jaxroute:default"}
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run([*command, *given], check=True, timeout=900)
    [took] = json.loads((tmp_path / "took.json").read_text())
    assert len(took["e2e_s"]) == 24
    counts = took["counts"]
    assert counts["ended finished"] == counts["dispatched"] == 28
    # What vLLM's engines report is fresh enough for the policy, all but always.
    assert counts.get("fallback missing-signal", 0) + counts.get("fallback stale-signal", 0) < 14
