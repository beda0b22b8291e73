"""The scheduler that runs inside vLLM, on a vLLM scheduler that does what the test says."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jaxroute.testbed.engine import step_hold
from jaxroute.testbed.trace import read_trace

COEFFICIENTS = {"W": 10.0, "h": 1.0, "g": 0.01, "d": 0.001, "e": 0.1, "f": 1e-5, "x": 1e-5, "u": 1.0, "v": 0.5}


class VllmScheduler:
    """The part of vLLM's scheduler that the testbed touches."""

    def __init__(self) -> None:
        self.requests: dict[str, SimpleNamespace] = {}
        self.planned: dict[str, int] = {}
        self.victims: list[str] = []
        self.taken_in_s: list[float] = []
        self.kv_cache_manager = SimpleNamespace(block_pool=SimpleNamespace(get_num_free_blocks=lambda: 11))

    def schedule(self) -> SimpleNamespace:
        for victim in self.victims:
            self._preempt_request(self.requests[victim], 0.0)
        for name, new in self.planned.items():
            self.requests[name].num_computed_tokens += new
        return SimpleNamespace(num_scheduled_tokens=dict(self.planned))

    def update_from_output(self, scheduler_output: object, model_runner_output: object) -> dict[str, str]:
        self.taken_in_s.append(time.monotonic())
        return {"outputs": "all"}

    def _preempt_request(self, request: SimpleNamespace, timestamp: float) -> None:
        request.num_computed_tokens = 0

    def get_request_counts(self) -> tuple[int, int]:
        return 3, 2

    def shutdown(self) -> None:
        self.planned = {}

    def has_unfinished_requests(self) -> bool:
        return bool(self.planned)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    vllm = types.ModuleType("vllm.v1.core.sched.scheduler")
    vllm.Scheduler = VllmScheduler  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.v1.core.sched.scheduler", vllm)
    monkeypatch.setitem(sys.modules, "step_hold", step_hold)
    monkeypatch.setenv("JAXROUTE_STEP_MS", json.dumps(COEFFICIENTS))
    monkeypatch.setenv("JAXROUTE_TRACE", str(tmp_path / "trace.csv"))
    path = Path(step_hold.__file__).with_name("held_scheduler.py")
    spec = importlib.util.spec_from_file_location("held_scheduler", path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    # This process is to keep its scheduling class, and its life.
    monkeypatch.setattr(loaded, "_prepare_thread", lambda: False)
    return loaded


@pytest.fixture
def scheduler(module: Any) -> Iterator[Any]:
    made = module.HeldScheduler()
    made.requests = {
        "decoding": SimpleNamespace(num_computed_tokens=99, num_tokens=100),
        "chunk": SimpleNamespace(num_computed_tokens=64, num_tokens=500),
        "late": SimpleNamespace(num_computed_tokens=40, num_tokens=41),
    }
    yield made
    made.shutdown()


def test_tokens_are_taken_in_when_the_step_time_is_over(scheduler: Any, tmp_path: Path) -> None:
    scheduler.planned = {"decoding": 1, "chunk": 200}
    begun = time.monotonic()
    assert scheduler.update_from_output(scheduler.schedule(), None) == {"outputs": "all"}
    target_ms = 10.0 + 0.1 + 0.1 + 200**2 * 1e-5 + 200 * 64 * 1e-5 + 1.0 + 0.5
    assert scheduler.taken_in_s[0] >= begun + target_ms / 1000
    scheduler.planned = {}
    scheduler.update_from_output(scheduler.schedule(), None)
    trace = read_trace(tmp_path / "trace.csv")
    assert trace.target_ms.tolist() == pytest.approx([target_ms], abs=1e-4)
    assert (trace.prefill_tokens[0], trace.decode_seqs[0], trace.context_tokens[0]) == (200, 1, 100)
    assert (trace.running[0], trace.waiting[0], trace.free_blocks[0], trace.preempted[0]) == (3, 2, 11, 0)


def test_preemptions_are_counted_in_their_step(scheduler: Any, tmp_path: Path) -> None:
    for victims in (["late"], []):
        scheduler.planned, scheduler.victims = {"decoding": 1}, victims
        scheduler.requests["decoding"].num_computed_tokens = 99
        scheduler.update_from_output(scheduler.schedule(), None)
    scheduler._trace.flush()
    assert read_trace(tmp_path / "trace.csv").preempted.tolist() == [1, 0]
    assert scheduler.requests["late"].num_computed_tokens == 0


def test_a_step_that_computes_nothing_is_not_held(scheduler: Any, tmp_path: Path) -> None:
    begun = time.monotonic()
    for _ in range(100):
        scheduler.update_from_output(scheduler.schedule(), None)
    assert time.monotonic() - begun < 0.5
    assert len(read_trace(tmp_path / "trace.csv")) == 0


def test_steps_of_a_busy_engine_follow_each_other_exactly(scheduler: Any, tmp_path: Path) -> None:
    scheduler.planned = {"decoding": 1}
    for _ in range(5):
        scheduler.requests["decoding"].num_computed_tokens = 99
        scheduler.update_from_output(scheduler.schedule(), None)
        time.sleep(0.002)
    scheduler._trace.flush()
    trace = read_trace(tmp_path / "trace.csv")
    apart_ms = 1000 * (trace.start_s[1:] - trace.start_s[:-1])
    # What a machine with much else to do cannot catch up with is left as it is.
    assert (apart_ms >= trace.target_ms[:-1] - 0.01).all()
    assert (trace.late_ms[1:] > 1.9).all()
