"""Holds engine steps to a profile's step time, and writes down how well that went.

vLLM's venv imports this file by its bare name, so it imports nothing but the standard library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TextIO

MOST_CARRIED_S = 0.01
"""Lateness that the steps after it make up for. Late wake-ups of 0.1 ms would otherwise add up over hundreds of steps;
a stall of the whole machine is left as it is, else the steps after it would be shorter than any real ones."""

FLUSH_S = 0.5

COLUMNS = (
    "start_s",
    "target_ms",
    "held_ms",
    "late_ms",
    "work_ms",
    "prefill_tokens",
    "decode_seqs",
    "context_tokens",
    "prefill_squares",
    "prefill_times_kv",
    "waiting",
    "running",
    "preempted",
    "free_blocks",
)
"""Columns of a trace, one row an engine step:

start_s: when the step starts by the held clock, seconds of CLOCK_MONOTONIC; target_ms: the profile's step time;
held_ms: from start_s to when the tokens were let go; late_ms: from start_s to when the scheduler really began; work_ms:
what the scheduler and the model really took from there; then the step's work (see `StepWork`); then, when it was
scheduled, the requests that wait and run, those preempted in this step, and the free KV blocks.
"""


class StepWork(NamedTuple):
    """What a step computes: p, n, C, sum of p_i^2 and sum of p_i * k_i, all whole numbers."""

    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    prefill_squares: int
    prefill_times_kv: int


def work_of(requests: Iterable[tuple[int, int, int]]) -> StepWork:
    """The work of a step.

    Args:
      requests: for each (new tokens in this step, tokens in the KV cache before it, all its known tokens). One of which
        all but the last known token is in the cache decodes; any other is a prefill, also one that was preempted and
        computes its generated tokens again.
    """
    p = n = context = squares = products = 0
    for new, kept, known in requests:
        if 0 < kept == known - 1:
            n += 1
            context += kept + 1
        else:
            p += new
            squares += new * new
            products += new * kept
    return StepWork(p, n, context, squares, products)


def step_ms(c: Mapping[str, float], work: StepWork) -> float:
    """The step time of `jaxroute.profiles`, milliseconds: to the last bit, by the same operations in the same order."""
    p, n, context, squares, products = work
    time_ms = max(c["W"], c["h"] + c["g"] * (p + n)) + c["d"] * context + c["e"] * n
    time_ms += c["f"] * squares + c["x"] * products
    return time_ms + c["u"] * (p > 0) + c["v"] * (n > 0)


class HeldStep(NamedTuple):
    """A step that was held: when it started, seconds, and the times of `COLUMNS`, milliseconds."""

    start_s: float
    target_ms: float
    held_ms: float
    late_ms: float
    work_ms: float


class StepClock:
    """Gives every engine step its time: a busy engine's next step starts when the last was to end, not when it did."""

    def __init__(self, now: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep) -> None:
        self._now, self._sleep = now, sleep
        self._begun = 0.0
        self._last_end: float | None = None

    def begin(self) -> None:
        """A step begins: called before the scheduler's work."""
        self._begun = self._now()

    def hold(self, target_ms: float) -> HeldStep:
        """Returns when the step that has begun is to end, or at once where its work took longer."""
        worked = self._now()
        start = self._begun if self._last_end is None else max(self._last_end, self._begun - MOST_CARRIED_S)
        end = start + target_ms / 1000
        now = worked
        while now < end:
            self._sleep(end - now)
            now = self._now()
        self._last_end = end
        return HeldStep(
            start, target_ms, (now - start) * 1000, (self._begun - start) * 1000, (worked - self._begun) * 1000
        )

    def idle(self) -> None:
        """Nothing is left to do: the next step starts when it begins."""
        self._last_end = None


class TraceWriter:
    """Writes a row of `COLUMNS` for every step, into the file at the latest with the first step `FLUSH_S` later."""

    def __init__(self, path: str | Path) -> None:
        self._file: TextIO = Path(path).open("w", buffering=1 << 16, encoding="utf-8")  # noqa: SIM115
        self._file.write(",".join(COLUMNS) + "\n")
        self._file.flush()
        self._flushed_s = 0.0

    def write(self, held: HeldStep, work: StepWork, counts: tuple[int, int, int, int]) -> None:
        """One step; `counts` are waiting, running, preempted and free blocks."""
        times = f"{held.start_s:.6f},{held.target_ms:.4f},{held.held_ms:.4f},{held.late_ms:.4f},{held.work_ms:.4f}"
        self._file.write(f"{times},{','.join(map(str, (*work, *counts)))}\n")
        if held.start_s - self._flushed_s > FLUSH_S:
            self._flushed_s = held.start_s
            self._file.flush()

    def flush(self) -> None:
        """Puts all rows into the file."""
        self._file.flush()

    def close(self) -> None:
        """Ends the file, all rows in it."""
        self._file.close()
