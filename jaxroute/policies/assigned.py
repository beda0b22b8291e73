"""Replay of given decisions: where each request went and, if known, when."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.errors import InputError
from jaxroute.policies.protocol import PolicyState
from jaxroute.types import RouterView
from jaxroute.workload.table import RequestTable
from jaxroute.workload.text_file import GZIP_MAGIC, read_lines
from jaxroute.workload.trace_decision_log import served_requests

ROUNDING_S = 1e-6
"""Seconds that are forgiven, since written times are rounded."""


@dataclasses.dataclass(frozen=True, eq=False)
class Assigned:
    """Sends row k of the workload to `instance[k]`, not before interval `not_before[k]`.

    Attributes:
      name: what the policy is called.
      instance: [N] int32.
      not_before: [N] int32, router interval; 0 where the time was not given.
    """

    name: str
    instance: np.ndarray
    not_before: np.ndarray

    def initial_state(self, instances: int) -> PolicyState:
        """The decisions, ([N] int32, [N] int32)."""
        del instances
        return jnp.asarray(self.instance), jnp.asarray(self.not_before)

    def act(self, state: PolicyState, view: RouterView, key: jax.Array) -> tuple[jax.Array, PolicyState]:
        """See `Policy.act`."""
        del key
        instance, not_before = state
        row = jnp.minimum(view.dispatched, instance.shape[0] - 1)
        return jnp.where(view.now >= not_before[row], instance[row], view.full.shape[0]), state


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Decisions read from a file, for the rows of a request table.

    Attributes:
      instance: [N] int64.
      dispatch_s: [N] float64, seconds, or None where the file does not say when.
    """

    instance: np.ndarray
    dispatch_s: np.ndarray | None

    def order(self) -> np.ndarray:
        """[N] the rows in the order in which they are dispatched."""
        if self.dispatch_s is None:
            return np.arange(len(self.instance))
        return np.argsort(self.dispatch_s, kind="stable")

    def policy(self, name: str, dt: float) -> Assigned:
        """The policy that replays them over a table whose rows are already in `order()`."""
        order = self.order()
        if self.dispatch_s is None:
            not_before = np.zeros(len(order), np.int32)
        else:
            not_before = np.ceil(self.dispatch_s[order] / dt - 1e-9 / dt).astype(np.int32)
        return Assigned(name, self.instance[order].astype(np.int32), not_before)


def read_decisions(path: Path, table: RequestTable, instances: int) -> Decisions:
    """Reads where each request of the table goes: a CSV, or a decision log of `jaxroute serve` (`logged_decisions`).

    The CSV has `request_id, instance` and optionally `dispatch_s` for every request of the table.

    Raises:
      InputError: names file, line and remedy: unreadable, a missing column, a value out of its range, a request that
        is unknown, repeated or left out, or a dispatch before the arrival.
    """
    if _is_log(path):
        return logged_decisions(path, table, instances)
    return _csv_decisions(path, table, instances)


def logged_decisions(path: Path, table: RequestTable, instances: int) -> Decisions:
    """The decisions of a router that `jaxroute serve` ran, for the requests that its log holds.

    Instance i is the i-th of the servers. Of a request that was tried on several, the last counts.

    Args:
      path: the log.
      table: the requests of the same log, maybe not all of them.
      instances: I.

    Raises:
      InputError: names file, line and remedy: a line that is none of a log, more servers than instances, or a table of
        other requests.
    """
    log = served_requests(read_lines(path), path)
    if len(log.backends) > instances:
        raise InputError(
            f"{path}: chooses among {len(log.backends)} servers ({', '.join(log.backends)}), but --instances is "
            f"{instances}; give --instances {len(log.backends)}"
        )
    first_s, server = log.first_s, {name: number for number, name in enumerate(log.backends)}
    of_row = {request.row: request for request in log.requests}
    instance, times = np.empty(len(table), np.int64), np.empty(len(table))
    for row, number in enumerate(table.request_id.tolist()):
        arrival_s, request = float(table.arrival_s[row]), of_row.get(number)
        if request is None or abs(request.arrival_s - first_s - arrival_s) > ROUNDING_S:
            place = path if request is None else f"{path}: line {request.line}"
            raise InputError(
                f"{place}: request {number} of {table.name}, which arrives at {arrival_s:.6f} s, is another one; a "
                f"decision log is replayed on its own requests: give --workload {path}, without --rate"
            )
        instance[row] = server[request.backend]
        times[row] = max(request.dispatch_s - first_s, arrival_s)
    return Decisions(instance, times)


def _is_log(path: Path) -> bool:
    """Whether a file is not even meant to be a CSV."""
    try:
        with path.open("rb") as file:
            start = file.read(len(GZIP_MAGIC))
    except OSError:
        return False
    return start == GZIP_MAGIC or start.startswith(b"{")


def _csv_decisions(path: Path, table: RequestTable, instances: int) -> Decisions:
    row_of = {int(request): row for row, request in enumerate(table.request_id)}
    instance = np.full(len(table), -1, np.int64)
    times = np.full(len(table), np.nan)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            if missing := [name for name in ("request_id", "instance") if name not in columns]:
                raise InputError(
                    f"{path}: line 1: no column {missing[0]!r}; needed: request_id, instance[, dispatch_s]"
                )
            timed = "dispatch_s" in columns
            for line in reader:
                place = f"{path}: line {reader.line_num}"
                row = _row(line, row_of, instance, place)
                instance[row] = _instance(line, instances, place)
                if timed:
                    times[row] = _dispatch(line, float(table.arrival_s[row]), place)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a CSV with request_id, instance[, dispatch_s], or a decision log"
        ) from error
    if (instance < 0).any():
        left_out = int(table.request_id[np.argmax(instance < 0)])
        raise InputError(f"{path}: request {left_out} of the workload has no row; every request needs a decision")
    return Decisions(instance, times if timed else None)


def _number(line: dict[str, str], column: str, place: str) -> float:
    try:
        value = float(line[column])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {column} is {line.get(column)!r}, must be a finite number")
    return value


def _row(line: dict[str, str], row_of: dict[int, int], instance: np.ndarray, place: str) -> int:
    request = _number(line, "request_id", place)
    row = row_of.get(int(request)) if request == int(request) else None
    if row is None:
        raise InputError(f"{place}: request_id {line['request_id']} is not in the workload")
    if instance[row] >= 0:
        raise InputError(f"{place}: request_id {line['request_id']} is there twice; keep one row")
    return row


def _instance(line: dict[str, str], instances: int, place: str) -> int:
    instance = _number(line, "instance", place)
    if instance != int(instance) or not 0 <= instance < instances:
        raise InputError(f"{place}: instance is {line['instance']}, must be a whole number from 0 to {instances - 1}")
    return int(instance)


def _dispatch(line: dict[str, str], arrival_s: float, place: str) -> float:
    dispatch = _number(line, "dispatch_s", place)
    if dispatch < arrival_s - ROUNDING_S:
        raise InputError(f"{place}: dispatch_s is {dispatch}, before the request's arrival at {arrival_s} s")
    return max(dispatch, arrival_s)
