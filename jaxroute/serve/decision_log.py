"""The decision log: one JSON line for each request that was placed, without its text, and how to read it back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import math
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, TextIO

import numpy as np

from jaxroute.errors import InputError, first_line
from jaxroute.json_fields import is_typed
from jaxroute.serve.request_end import RequestEnd

LOG = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Of the lines that this version writes and reads."""

REMEDY = "give a file that `jaxroute serve` wrote"


@dataclasses.dataclass(frozen=True, eq=False)
class LogRow:
    """One request that was placed once; a retry has a row of its own. Seconds are by the router's monotonic clock.

    Attributes:
      run: when the router that wrote the row was started, ISO 8601, UTC; only times of one run can be compared.
      id: of the request.
      arrival_s: when it came in.
      prompt_tokens: of its prompt.
      output_tokens: that it had; None if nobody knows.
      predicted_tokens, predicted_bucket, predicted_upper: of its output length.
      task: its task, if known.
      streamed: whether its tokens were seen one after the other.
      backend: name of the server that had it.
      dispatch_s: when it was sent there.
      ttft_s: from its arrival to its first token; None if none was seen.
      e2e_s: from its arrival to its end.
      outcome: `finished`, `aborted` (by the client), or what else went wrong.
      decided_by: `policy`, or a heuristic.
      fallback: why the heuristic decided instead of the policy.
      shadow: backend that the policy would have chosen, or `hold`, in shadow mode.
      names: the C servers that were to choose from.
      router_features, instance_features: what the policy saw, [G] and [C][F]; None where it was not asked.
      scores: the policy's logits, [C + 1], the last one hold; None where it gave none. Where one of these numbers is
        not finite, there is None.
      signal_age_s: age of the oldest metrics among those servers; None if one had none.
      decision_s: seconds that the decision took.
    """

    run: str
    id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int | None
    predicted_tokens: int
    predicted_bucket: int
    predicted_upper: int
    task: str | None
    streamed: bool
    backend: str
    dispatch_s: float
    ttft_s: float | None
    e2e_s: float
    outcome: str
    decided_by: str
    fallback: str | None
    shadow: str | None
    names: list[str]
    router_features: list[float | None] | None
    instance_features: list[list[float | None]] | None
    scores: list[float | None] | None
    signal_age_s: float | None
    decision_s: float


_TEXTS = ("run", "id", "backend", "outcome", "decided_by")
_NUMBERS = ("arrival_s", "dispatch_s", "e2e_s", "decision_s")
_WHOLE = ("prompt_tokens", "predicted_tokens", "predicted_bucket", "predicted_upper")
_LISTS = ("router_features", "instance_features", "scores")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(_TEXTS, (str, "a text")),
    **dict.fromkeys(_NUMBERS, ((int, float), "a number")),
    **dict.fromkeys(_WHOLE, (int, "a whole number")),
    **dict.fromkeys(_LISTS, ((list, NoneType), "a list or null")),
    **dict.fromkeys(("task", "fallback", "shadow"), ((str, NoneType), "a text or null")),
    **dict.fromkeys(("ttft_s", "signal_age_s"), ((int, float, NoneType), "a number or null")),
    "output_tokens": ((int, NoneType), "a whole number or null"),
    "streamed": (bool, "true or false"),
    "names": (list, "a list"),
}
"""Of each field: what it may hold, and how an error says so."""


class DecisionLog:
    """Appends rows to a file from a thread of its own; whoever writes never waits.

    Attributes:
      path: of the file.
      lost: rows that were not written, since too many waited or the disk failed.
    """

    def __init__(self, path: str | Path, *, most_waiting: int = 10_000) -> None:
        """Opens the file to append to it.

        Raises:
          InputError: it cannot be written.
        """
        self.path = Path(path)
        self.lost = 0
        self._run_name = datetime.datetime.now(datetime.UTC).isoformat()
        self._waiting: queue.Queue[RequestEnd | None] = queue.Queue(most_waiting)
        try:
            self._file: TextIO = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"decision log {path}: cannot be written ({error.strerror}); give another file") from error
        self._thread = threading.Thread(target=self._run, name="jaxroute-decision-log", daemon=True)
        self._thread.start()

    def write(self, end: RequestEnd) -> None:
        """Writes one row, soon."""
        try:
            self._waiting.put_nowait(end)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Writes what still waits and closes the file."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()
        self._file.close()

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while (end := self._waiting.get()) is not None:
            # A full disk must not end the thread, nor fill the log of errors.
            try:
                self._file.write(encode(row_of(end, self._run_name)) + "\n")
                if self._waiting.empty():
                    self._file.flush()
            except Exception as error:
                if not self.lost:
                    LOG.warning("decision log %s: cannot be written (%s)", self.path, error)
                self.lost += 1


def row_of(end: RequestEnd, run: str) -> LogRow:
    """The row of a request that has ended; `run` as in `LogRow`."""
    placement, request, decision = end.placement, end.placement.request, end.placement.decision
    arrival_s = placement.dispatch_s if request.arrival_s is None else request.arrival_s
    return LogRow(
        run=run,
        id=request.id,
        arrival_s=arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=end.output_tokens,
        predicted_tokens=request.predicted_tokens,
        predicted_bucket=request.predicted_bucket,
        predicted_upper=request.predicted_upper,
        task=request.task,
        streamed=request.streamed,
        backend=placement.backend,
        dispatch_s=placement.dispatch_s,
        ttft_s=None if end.first_token_s is None else end.first_token_s - arrival_s,
        e2e_s=end.end_s - arrival_s,
        outcome=end.outcome,
        decided_by=decision.decided_by,
        fallback=decision.fallback,
        shadow=decision.shadow,
        names=list(decision.names),
        router_features=_numbers(decision.router_features),
        instance_features=_numbers(decision.instance_features),
        scores=_numbers(decision.scores),
        signal_age_s=decision.signal_age_s if math.isfinite(decision.signal_age_s) else None,
        decision_s=decision.decision_s,
    )


def encode(row: LogRow) -> str:
    """A row as one line of JSON; numbers that are not finite become null."""
    data = {"format_version": FORMAT_VERSION, **vars(row)}
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(data), allow_nan=False, separators=(",", ":"))


def read_log(path: str | Path) -> Iterator[LogRow]:
    """The rows of a decision log, in the order in which the requests ended.

    A last line that a crash has cut off is left out; keys that this version does not know are, too.

    Raises:
      InputError: names file and line: cannot be read, no JSON, of another version, or a field is missing.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):
                    yield parse_row(line, f"decision log {path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"decision log {path}: cannot be read ({error}); give a file of `jaxroute serve`") from error


def is_logged(line: str) -> bool:
    """Whether a line of a file looks like one of a decision log, of whatever version."""
    return line.lstrip().startswith("{") and '"format_version"' in line and '"decided_by"' in line


def parse_row(line: str, place: str) -> LogRow:
    """The row that a line holds.

    Args:
      line: of a decision log.
      place: what an error calls it.

    Raises:
      InputError: no JSON, of another version, or a field is missing or of another type.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({first_line(error)}); {REMEDY}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(f"{place}: format_version is {version!r}, but this version reads {FORMAT_VERSION}")
    if missing := sorted(_KINDS.keys() - data.keys()):
        raise InputError(f"{place}: lacks {', '.join(missing)}; {REMEDY}")
    for name, (kind, what) in _KINDS.items():
        value = data[name]
        if not is_typed(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{place}: {name} must be {what}; {REMEDY}")
    return LogRow(**{name: data[name] for name in _KINDS})


def _numbers(array: np.ndarray | None) -> Any:
    """Rounded to what float32 holds, which halves the file."""
    if array is None:
        return None
    return [_numbers(row) for row in array] if array.ndim > 1 else [float(f"{value:.7g}") for value in array.tolist()]


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
