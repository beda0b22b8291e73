"""What the README shows must run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from jaxroute.profiles import StepProfile, available_profiles, load_profile

ROOT = Path(__file__).parents[1]


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    assert re.search(r"gated-central-queue: mean E2E \d+\.\d\d s, p99 TTFT \d+\.\d\d s", shown)


def test_every_file_that_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\((?!https)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("name", available_profiles())
def test_shipped_profiles_load_and_round_trip(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert StepProfile(**json.loads(json.dumps(vars(profile)))) == profile
    assert profile.max_num_batched_tokens >= profile.max_model_len


@pytest.mark.parametrize(
    ("name", "kv_tokens", "decode_ms"),
    [
        ("v100-16gb-llama2-7b", 2336, 20.4),
        ("v100-32gb-llama2-7b", 31552, 20.4),
        ("a100-80gb-llama2-7b", 119408, 9.6),
        ("a100-80gb-llama31-8b", 450000, 11.7),
        ("h100-80gb-llama31-8b", 450000, 6.8),
        ("h100-80gb-llama2-7b", 119408, 6.1),
    ],
)
def test_profiles_have_the_figures_of_their_sources(name: str, kv_tokens: int, decode_ms: float) -> None:
    profile = load_profile(name)
    assert profile.kv_tokens == kv_tokens
    assert profile.step_ms([], [1]) == pytest.approx(decode_ms, abs=0.06)
