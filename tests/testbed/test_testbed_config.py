"""What a testbed may be asked for, and the profile, command and environment that come of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import load_profile
from jaxroute.testbed.config import TestbedConfig, emulated_profile, load_warning
from jaxroute.testbed.engine import step_hold
from jaxroute.testbed.install import READY
from jaxroute.testbed.vllm_command import ENGINE_FILES, engine_command, engine_environment, find_venv

V100 = load_profile("v100-32gb-llama2-7b")
H100 = load_profile("h100-80gb-llama31-8b")


def option(command: list[str], name: str) -> str:
    return command[command.index(f"--{name}") + 1]


def command_of(config: TestbedConfig) -> list[str]:
    profile = emulated_profile(config)
    return engine_command(Path("/venv"), Path("/model"), profile, config.scheduler, 8101)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"instances": 0}, "instances is 0"),
        ({"scheduler": "prefill-first"}, "vLLM V1 has no prefill-first scheduler; take chunked or whole-prompt"),
        ({"scheduler": "fifo"}, "scheduler is 'fifo', must be one of chunked, whole-prompt"),
        ({"slow_down": 0.0}, "slow-down is 0.0"),
        ({"slow_down": float("nan")}, "slow-down is nan"),
        ({"start_timeout_s": 0.0}, "time-out is 0.0 s"),
        ({"base_port": 65_535}, "base port 65535 leaves no room for 4 ports"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        TestbedConfig(profile=V100, **options)  # type: ignore[arg-type]


def test_blocks_grow_to_what_vllm_has_on_cpu_and_hold_as_many_tokens() -> None:
    assert (V100.block_size, V100.kv_blocks) == (16, 1972)
    emulated = emulated_profile(TestbedConfig(profile=V100))
    assert (emulated.block_size, emulated.kv_blocks) == (32, 986)
    assert emulated.kv_tokens == V100.kv_tokens


def test_a_block_size_that_fits_stays() -> None:
    profile = dataclasses.replace(V100, block_size=64, kv_blocks=100)
    emulated = emulated_profile(TestbedConfig(profile=profile))
    assert (emulated.block_size, emulated.kv_blocks) == (64, 100)


def test_an_emulated_profile_is_emulated_as_it_is() -> None:
    emulated = emulated_profile(TestbedConfig(profile=V100, kv_tokens=3800))
    assert emulated_profile(TestbedConfig(profile=emulated)) == emulated


def test_slow_down_scales_every_step_and_no_limit() -> None:
    emulated = emulated_profile(TestbedConfig(profile=H100, slow_down=4.0))
    work = ([(700, 0), (30, 200)], [500, 600])
    assert emulated.step_ms(*work) == pytest.approx(4 * H100.step_ms(*work))
    assert (emulated.grad1, emulated.frontend_ms) == (4 * H100.grad1, H100.frontend_ms)
    assert H100.kv_tokens - 32 < emulated.kv_tokens <= H100.kv_tokens
    assert emulated.max_num_seqs == H100.max_num_seqs


def test_no_request_is_longer_than_the_kv_cache() -> None:
    emulated = emulated_profile(TestbedConfig(profile=V100, kv_tokens=1000))
    assert (emulated.kv_blocks, emulated.kv_tokens, emulated.max_model_len) == (31, 992, 992)


def test_a_whole_prompt_fits_into_a_step() -> None:
    small = dataclasses.replace(V100, max_num_batched_tokens=1024)
    assert emulated_profile(TestbedConfig(profile=small)).max_model_len == V100.max_model_len
    assert emulated_profile(TestbedConfig(profile=small, scheduler="whole-prompt")).max_model_len == 1024


def test_too_small_a_kv_cache_is_refused() -> None:
    with pytest.raises(InputError, match="31 KV tokens are less than one block of 32"):
        emulated_profile(TestbedConfig(profile=V100, kv_tokens=31))


def test_the_command_has_the_profiles_limits_and_a_block_for_vllm_itself() -> None:
    command = command_of(TestbedConfig(profile=V100, kv_tokens=3840))
    assert option(command, "block-size") == "32"
    assert option(command, "num-gpu-blocks-override") == "121"
    assert option(command, "max-num-seqs") == str(V100.max_num_seqs)
    assert option(command, "max-num-batched-tokens") == str(V100.max_num_batched_tokens)
    assert option(command, "max-model-len") == "3840"
    assert (option(command, "host"), option(command, "port")) == ("127.0.0.1", "8101")
    assert {"--enable-chunked-prefill", "--no-enable-prefix-caching", "--enforce-eager"} <= set(command)
    assert command[:3] == ["/venv/bin/python", str(ENGINE_FILES / "start.py"), str(os.getpid())]


def test_whole_prompts_are_vllm_without_chunked_prefill() -> None:
    command = command_of(TestbedConfig(profile=V100, scheduler="whole-prompt"))
    assert "--no-enable-chunked-prefill" in command
    assert "--enable-chunked-prefill" not in command


def test_the_scheduler_class_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    environment = engine_environment(V100, Path("/run/engine-0.csv"))
    module, name = option(command_of(TestbedConfig(profile=V100)), "scheduler-cls").split(".")
    assert f"class {name}(" in (Path(environment["PYTHONPATH"]) / f"{module}.py").read_text()
    assert "PYTHONHOME" not in environment and "VIRTUAL_ENV" not in environment
    assert json.loads(environment["JAXROUTE_STEP_MS"]) == V100.coefficients_ms
    assert environment["JAXROUTE_TRACE"] == "/run/engine-0.csv"


def test_the_kv_cache_is_given_the_memory_that_it_needs() -> None:
    assert engine_environment(H100, Path("t"))["VLLM_CPU_KVCACHE_SPACE"] == "1"
    large = H100.with_kv_tokens(6_000_000)
    assert engine_environment(large, Path("t"))["VLLM_CPU_KVCACHE_SPACE"] == "2"


def test_what_runs_in_vllms_environment_imports_nothing_of_ours() -> None:
    for path in Path(step_hold.__file__).parent.glob("*.py"):
        assert not re.search(r"^\s*(from|import) jaxroute", path.read_text(), re.MULTILINE)


def test_a_missing_installation_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not installed there; run `make setup-vllm`"):
        find_venv(tmp_path / "venv")
    (tmp_path / ".venv-vllm").mkdir()
    (tmp_path / ".venv-vllm" / READY).touch()
    monkeypatch.chdir(tmp_path)
    assert find_venv(None) == tmp_path / ".venv-vllm"


def test_steps_too_short_for_the_cores_are_warned_of() -> None:
    assert load_warning(V100, 4, 2) is None
    warning = load_warning(H100, 4, 2)
    assert warning is not None and "slow the engines down" in warning
    assert load_warning(H100, 1, 2) is None
