"""The decision log of `jaxroute serve` as a trace: what was asked for, what came of it, and where it went."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxroute.errors import InputError
from jaxroute.serve.decision_log import LogRow, is_logged, parse_row
from jaxroute.workload.table import NO_TASK
from jaxroute.workload.trace_rows import TraceRows

logger = logging.getLogger(__name__)

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


class Served(NamedTuple):
    """One request of a log.

    Attributes:
      line: of the file, from 1 on.
      row: of the file, from 0 on, blank lines not counted.
      arrival_s, dispatch_s: seconds by the clock of its run.
      prompt_tokens, output_tokens: of its prompt, and those that it had.
      task: its task.
      backend: the server that had it at last.
    """

    line: int
    row: int
    arrival_s: float
    dispatch_s: float
    prompt_tokens: int
    output_tokens: int
    task: str
    backend: str


@dataclasses.dataclass(frozen=True)
class ServedRequests:
    """The requests of the latest run of a router that a log holds.

    Of a request that was tried on several servers, the last try counts. One that its client left has as many output
    tokens as it had seen: so many were made. Requests of which nobody knows the output are left out: those that failed,
    and those that generate nothing.

    Attributes:
      path: of the log.
      requests: M of them, by the lines of the log.
      backends: names of the servers that were to choose from, in their order.
    """

    path: Path
    requests: tuple[Served, ...]
    backends: tuple[str, ...]

    @property
    def first_s(self) -> float:
        """The first arrival, by the clock of the run."""
        return min(request.arrival_s for request in self.requests)

    def rows(self) -> TraceRows:
        """As a trace that starts at 0."""
        requests, first_s = self.requests, self.first_s
        return TraceRows(
            path=self.path,
            columns=COLUMNS,
            line=np.array([each.line for each in requests]),
            row=np.array([each.row for each in requests]),
            arrival_s=np.array([each.arrival_s - first_s for each in requests], np.float64),
            prompt_tokens=np.array([each.prompt_tokens for each in requests], np.float64),
            output_tokens=np.array([each.output_tokens for each in requests], np.float64),
            task=[each.task for each in requests],
        )


def served_requests(lines: Sequence[str], path: Path) -> ServedRequests:
    """Reads the lines of a decision log; a last one that a crash has cut off is left out.

    Raises:
      InputError: names file and line of the first one that is none of a decision log; or no request is left.
    """
    runs: dict[str, dict[str, tuple[Served, bool]]] = {}
    backends: dict[str, list[tuple[str, ...]]] = {}
    written = [number for number, line in enumerate(lines, 1) if line.strip()]
    for row, number in enumerate(written):
        line = lines[number - 1]
        if number == len(lines) and row and not line.rstrip().endswith("}"):
            break
        logged = parse_row(line, f"{path}: line {number}")
        # The same request again, on another server: it keeps its arrival.
        runs.setdefault(logged.run, {})[logged.id] = _served(logged, number, row), _is_known(logged)
        choice = tuple(dict.fromkeys([*map(str, logged.names), logged.backend]))
        known = backends.setdefault(logged.run, [])
        if choice not in known:
            known.append(choice)
    latest = max(runs)
    if len(runs) > 1:
        left_out = sum(len(requests) for run, requests in runs.items() if run != latest)
        logger.warning("%s: left out %d requests of earlier runs of the router, by other clocks", path, left_out)
    kept = [request for request, is_known in runs[latest].values() if is_known]
    if not kept:
        raise InputError(f"{path}: of no request is it known how many output tokens it had; give another log")
    if lost := len(runs[latest]) - len(kept):
        logger.warning("%s: left out %d of %d requests without known output", path, lost, lost + len(kept))
    kept.sort(key=lambda request: request.row)
    return ServedRequests(path, tuple(kept), _in_order(backends[latest]))


def _served(row: LogRow, line: int, number: int) -> Served:
    return Served(
        line=line,
        row=number,
        arrival_s=row.arrival_s,
        dispatch_s=row.dispatch_s,
        prompt_tokens=row.prompt_tokens,
        output_tokens=row.output_tokens or 0,
        task=row.task or NO_TASK,
        backend=row.backend,
    )


def _is_known(row: LogRow) -> bool:
    return row.outcome in ("finished", "aborted") and bool(row.output_tokens)


def _in_order(choices: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """All names; each choice lists those that were open, in the configuration's order."""
    longest_first = sorted(choices, key=len, reverse=True)
    return tuple(dict.fromkeys(name for choice in longest_first for name in choice))


__all__ = ["COLUMNS", "Served", "ServedRequests", "is_logged", "served_requests"]
