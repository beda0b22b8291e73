"""`jaxroute profile` on a real vLLM whose step times are known: an engine of the testbed."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.profiles import load_profile
from jaxroute.testbed import Testbed, TestbedConfig
from jaxroute.testbed.vllm_command import find_venv

PROMPTS, SEQUENCES, CONTEXTS = (0, 20, 100, 400, 1500), (0, 1, 4, 16, 64, 100), (50, 400, 1500)


@pytest.mark.live
@pytest.mark.parametrize("scheduler", ["chunked", "whole-prompt"])
def test_step_times_of_an_emulated_gpu_are_recovered_within_5_percent(scheduler: str, tmp_path: Path) -> None:
    try:
        find_venv(None)
    except InputError as error:
        pytest.skip(str(error))
    chunks = {"chunked": 2048, "whole-prompt": 4096}[scheduler]
    emulated = dataclasses.replace(load_profile("a100-80gb-llama2-7b"), max_num_batched_tokens=chunks)
    out = tmp_path / "measured.json"
    with Testbed(TestbedConfig(profile=emulated, instances=1, scheduler=scheduler)) as testbed:
        limits = ("--max-num-seqs", str(emulated.max_num_seqs), "--max-num-batched-tokens", str(chunks))
        main(["profile", testbed.urls[0], *limits, "--scheduler", scheduler, "--budget", "quick", "--out", str(out)])
        [steps] = testbed.steps()
        preempted = int(steps.preempted.sum())
    measured = load_profile(str(out))
    assert preempted == 0
    assert measured.engine.startswith("vLLM 0.")
    assert (measured.kv_blocks, measured.block_size) == (testbed.profile.kv_blocks, testbed.profile.block_size)
    for new, n, context in itertools.product(PROMPTS, SEQUENCES, CONTEXTS):
        if (n or new) and n * context < 0.9 * emulated.kv_tokens:
            step = ([(new, 0)] if new else [], [context] * n)
            assert measured.step_ms(*step) == pytest.approx(emulated.step_ms(*step), rel=0.05), (new, n, context)
