"""What tests of real vLLM engines share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.testbed.vllm_command import find_venv


def needs_vllm() -> None:
    """Skips the test where vLLM is not installed."""
    try:
        find_venv(None)
    except InputError as error:
        pytest.skip(str(error))


def small_profile() -> StepProfile:
    """Steps of 15 ms and more, every coefficient at work, and limits that short prompts reach."""
    coefficients = {"W": 15, "h": 10, "g": 0.05, "d": 0.001, "e": 0.1, "f": 1e-4, "x": 2e-4, "u": 1, "v": 0.5}
    return dataclasses.replace(
        load_profile("v100-32gb-llama2-7b"),
        coefficients_ms=coefficients,
        max_num_seqs=16,
        max_num_batched_tokens=256,
        max_model_len=1024,
    )


def living_of(sessions: Iterable[int]) -> list[int]:
    """Processes of these sessions that run; one that has ended and waits to be collected does not."""
    wanted, found = set(sessions), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(session) in wanted and state != "Z":
            found.append(int(entry.name))
    return found
