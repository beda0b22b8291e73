"""An engine's trace: how long each step was to take and did, and what it computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.testbed.engine.step_hold import COLUMNS

MOST_OVERRUN_SHARE = 0.03
"""A run is valid while fewer of its steps than this took longer than the profile says."""


@dataclasses.dataclass(frozen=True)
class StepTrace:
    """The steps of one engine, each column [steps]; see `jaxroute.testbed.engine.step_hold.COLUMNS` for what they are.

    Times are float64, counts int64.
    """

    start_s: np.ndarray
    target_ms: np.ndarray
    held_ms: np.ndarray
    late_ms: np.ndarray
    work_ms: np.ndarray
    prefill_tokens: np.ndarray
    decode_seqs: np.ndarray
    context_tokens: np.ndarray
    prefill_squares: np.ndarray
    prefill_times_kv: np.ndarray
    waiting: np.ndarray
    running: np.ndarray
    preempted: np.ndarray
    free_blocks: np.ndarray

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def lag_ms(self) -> np.ndarray:
        """[steps] how much later than it was to end each step let its tokens go, milliseconds."""
        return self.held_ms - self.target_ms

    @property
    def overran(self) -> np.ndarray:
        """[steps] bool: the real work, begun as late as it was, ended after the step was to end."""
        return self.late_ms + self.work_ms > self.target_ms

    @property
    def overrun_share(self) -> float:
        """Share of the steps that overran; 0 of none. A run is valid below `MOST_OVERRUN_SHARE`."""
        return float(self.overran.mean()) if len(self) else 0.0

    def between(self, start_s: float, end_s: float = np.inf) -> StepTrace:
        """The steps that started in [start_s, end_s), seconds of `time.monotonic()`."""
        chosen = (self.start_s >= start_s) & (self.start_s < end_s)
        return StepTrace(*(getattr(self, name)[chosen] for name in COLUMNS))


def read_trace(path: Path) -> StepTrace:
    """Reads a trace; of one that is still written, the whole lines.

    Raises:
      InputError: it is not there, or no trace.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise InputError(f"trace {path}: cannot be read ({error.strerror}); give an engine's trace") from error
    header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
    if header != ",".join(COLUMNS):
        raise InputError(f"trace {path}: line 1: not the columns of a trace; give an engine's trace")
    rows = []
    for number, line in enumerate(lines, start=2):
        try:
            rows.append([float(field) for field in line.split(",")])
        except ValueError:
            rows.append([])
        if len(rows[-1]) != len(COLUMNS):
            raise InputError(f"trace {path}: line {number}: must be {len(COLUMNS)} numbers")
    table = np.array(rows, float).reshape(len(rows), len(COLUMNS))
    times = COLUMNS.index("prefill_tokens")
    return StepTrace(*(table[:, i] if i < times else table[:, i].astype(np.int64) for i in range(len(COLUMNS))))
