"""Reads a request trace; the format is recognised from the first line.

| format | first line |
|---|---|
| native CSV | `arrival_s,prompt_tokens,output_tokens`, optionally `task` |
| Azure LLM 2023 and 2024 CSV | `TIMESTAMP,ContextTokens,GeneratedTokens` |
| BurstGPT CSV | `Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type` and newer ones |
| Vidur CSV | `arrived_at,num_prefill_tokens,num_decode_tokens` |
| Mooncake JSON lines | `{"timestamp": 0, "input_length": 6758, "output_length": 500, ...}` |
| decision log of `jaxroute serve` | `{"format_version": 1, ..., "decided_by": ...}` |
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.table import NO_TASK, RequestTable
from jaxroute.workload.text_file import read_lines
from jaxroute.workload.trace_csv import CSV_FORMATS, CsvFormat, read_csv, recognise
from jaxroute.workload.trace_decision_log import is_logged, served_requests
from jaxroute.workload.trace_mooncake import FIELDS, read_mooncake
from jaxroute.workload.trace_rows import TraceRows, shorten

logger = logging.getLogger(__name__)


def read_trace(path: str | Path) -> RequestTable:
    """Reads a trace file, gzip or not, in any of the formats above.

    Arrivals are sorted (stable) and start at 0. `request_id` is the 0-based row in the file. In BurstGPT, rows with 0
    response tokens are requests that failed: they are left out, and the log says how many. Of a decision log, see
    `ServedRequests`.

    Args:
      path: the file; its name becomes the table's name.

    Raises:
      InputError: names the file, the 1-based line and the remedy.
    """
    path = Path(path)
    rows = _read_rows(path)
    rows.check()
    task_names, task = _tasks(rows.task, len(rows.line))
    return RequestTable.create(
        rows.arrival_s - rows.arrival_s.min(),
        rows.prompt_tokens.astype(np.int64),
        rows.output_tokens.astype(np.int64),
        task=task,
        task_names=task_names,
        request_id=rows.row,
        name=path.name,
    )


def _read_rows(path: Path) -> TraceRows:
    lines = read_lines(path)
    number = next((number for number, line in enumerate(lines, 1) if line.strip()), None)
    if number is None:
        raise InputError(f"{path}: is empty; give a trace: {_accepted()}")
    first = lines[number - 1].strip()
    if is_logged(first):
        return served_requests(lines, path).rows()
    if first.startswith("{"):
        return read_mooncake(lines, path)
    form = recognise(first)
    if form is None:
        raise InputError(f"{path}: line {number}: unknown header {shorten(first)}; accepted: {_accepted()}")
    rows = read_csv(lines, path, form)
    return _without_failures(rows, form) if form.zero_output_is_failure else rows


def _without_failures(rows: TraceRows, form: CsvFormat) -> TraceRows:
    failed = rows.output_tokens == 0
    if failed.all():
        raise InputError(
            f"{rows.path}: all {len(failed)} requests have 0 {form.output}: all failed, none is left to run"
        )
    if failed.any():
        logger.warning(
            "%s: left out %d of %d requests, which failed (0 %s)", rows.path, failed.sum(), len(failed), form.output
        )
    return rows.take(~failed)


def _tasks(names: Sequence[str] | None, count: int) -> tuple[tuple[str, ...], np.ndarray]:
    """The task names in order of appearance, and [N] the index of each request's task."""
    if names is None:
        return (NO_TASK,), np.zeros(count, np.int64)
    index = {name: position for position, name in enumerate(dict.fromkeys(names))}
    return tuple(index), np.array([index[name] for name in names])


def _accepted() -> str:
    forms = [f"{form.name} CSV ({', '.join(form.columns)})" for form in CSV_FORMATS]
    return ", ".join([*forms, f"Mooncake JSON lines ({', '.join(FIELDS)})", "decision log of jaxroute serve"])
