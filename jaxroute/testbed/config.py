"""What a testbed is to be, and the profile that its engines can really have."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.testbed.model import LONGEST

SCHEDULERS = ("chunked", "whole-prompt")

CPU_BLOCK = 32
"""vLLM's attention on CPU takes only block sizes that are multiples of this."""

BUSY_MS = 3.5
"""What a step really costs one core, about: the engine's own work, its tokens' way out, and its API server."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestbedConfig:
    """A testbed.

    Attributes:
      profile: the server that every engine emulates; see `emulated_profile` for what becomes of it.
      instances: I, engines.
      scheduler: chunked or whole-prompt.
      kv_tokens: KV cache of every engine, tokens; None for the profile's.
      slow_down: factor on all step times, to give a small machine time for its own work.
      base_port: the engines listen on base_port, base_port + 1, ...; None for ports that are free.
      folder: where logs, traces and `profile.json` go; None for a temporary one, gone with the testbed.
      start_timeout_s: how long the engines may take to start.
      venv: the environment that `make setup-vllm` made; None for `.venv-vllm` here or in the checkout.
    """

    __test__: ClassVar[bool] = False

    profile: StepProfile
    instances: int = 4
    scheduler: str = "chunked"
    kv_tokens: int | None = None
    slow_down: float = 1.0
    base_port: int | None = None
    folder: Path | None = None
    start_timeout_s: float = 300.0
    venv: Path | None = None

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise InputError(f"testbed: instances is {self.instances}, must be at least 1")
        if self.scheduler == "prefill-first":
            raise InputError("testbed: vLLM V1 has no prefill-first scheduler; take chunked or whole-prompt")
        if self.scheduler not in SCHEDULERS:
            raise InputError(f"testbed: scheduler is {self.scheduler!r}, must be one of {', '.join(SCHEDULERS)}")
        if not (math.isfinite(self.slow_down) and self.slow_down > 0):
            raise InputError(f"testbed: slow-down is {self.slow_down}, must be above 0")
        if not self.start_timeout_s > 0:
            raise InputError(f"testbed: the start time-out is {self.start_timeout_s} s, must be above 0")
        if self.base_port is not None and not 0 < self.base_port <= 65_536 - self.instances:
            raise InputError(f"testbed: base port {self.base_port} leaves no room for {self.instances} ports")


def emulated_profile(config: TestbedConfig) -> StepProfile:
    """The profile that the engines really emulate.

    Its steps take `slow_down` times as long; its blocks are of a size that vLLM has on CPU, for as many KV tokens. No
    request is longer than the KV cache or the model, nor, with whole prompts, than a step's budget: so vLLM wants it.

    Raises:
      InputError: the KV cache would have no block.
    """
    profile, slow = config.profile, config.slow_down
    block = CPU_BLOCK * math.ceil(profile.block_size / CPU_BLOCK)
    kv_tokens = profile.kv_tokens if config.kv_tokens is None else config.kv_tokens
    sized = dataclasses.replace(profile, block_size=block).with_kv_tokens(kv_tokens)
    longest = min(profile.max_model_len, sized.kv_tokens, LONGEST)
    if config.scheduler == "whole-prompt":
        longest = min(longest, profile.max_num_batched_tokens)
    return dataclasses.replace(
        sized,
        coefficients_ms={name: slow * value for name, value in profile.coefficients_ms.items()},
        max_model_len=longest,
        grad1=slow * profile.grad1,
        grad2=slow * profile.grad2,
    )


def load_warning(profile: StepProfile, instances: int, cores: int) -> str | None:
    """A warning where the machine's cores are too few for the steps of that many engines."""
    factor = instances * BUSY_MS / (cores * profile.shortest_step_ms)
    if factor <= 1:
        return None
    return (
        f"steps of {profile.shortest_step_ms:.1f} ms are short for {instances} engines on {cores} cores: watch the "
        f"share of overrun steps, or slow the engines down {math.ceil(10 * factor) / 10:g} times more"
    )
