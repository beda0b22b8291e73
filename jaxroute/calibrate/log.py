"""Logs of requests that servers have answered, in three formats -> one table."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np

from jaxroute.errors import InputError, first_line

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens", "instance", "dispatch_s", "ttft_s", "e2e_s")
"""Of a requests.csv, as `jaxroute simulate` and `jaxroute fidelity` write it."""

BENCH_FIELDS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
"""Of what `vllm bench serve --save-result --save-detailed` writes."""

FEWEST_REQUESTS = 20


@dataclasses.dataclass(frozen=True)
class RequestLog:
    """N requests in the order of their dispatch; seconds are counted from the first of them.

    Attributes:
      name: of the file.
      servers: names of the I servers.
      server: [N] int64, which of them had the request.
      dispatch_s: [N] when it was sent there.
      waited_s: [N] from its arrival at the router to that.
      prompt_tokens, output_tokens: [N] int64.
      ttft_s: [N] from its arrival to the first token; NaN where it was not seen.
      e2e_s: [N] from its arrival to the last token.
      counted: [N] bool, whether its times count; the others only burden their server.
      notes: what a reader of the results should know of the log.
    """

    name: str
    servers: tuple[str, ...]
    server: np.ndarray
    dispatch_s: np.ndarray
    waited_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    ttft_s: np.ndarray
    e2e_s: np.ndarray
    counted: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dispatch_s)

    def first(self, count: int) -> RequestLog:
        """Its first `count` requests."""
        return self._take(np.arange(len(self)) < count)

    def of_servers(self, names: tuple[str, ...]) -> RequestLog:
        """What some of the servers had.

        Raises:
          InputError: a name that is none of theirs.
        """
        if unknown := [name for name in names if name not in self.servers]:
            raise InputError(f"{self.name}: has no server {unknown[0]}; it has {', '.join(self.servers)}")
        place = np.asarray([names.index(name) if name in names else -1 for name in self.servers])[self.server]
        kept = self._take(place >= 0)
        return dataclasses.replace(kept, server=place[place >= 0], servers=names)

    def _take(self, rows: np.ndarray) -> RequestLog:
        columns = {name: value[rows] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, **columns)


def read_request_log(path: Path) -> RequestLog:
    """Reads a requests.csv, a decision log of `jaxroute serve`, or a result of `vllm bench serve`.

    Raises:
      InputError: names file and remedy: none of these, or a field that is missing or no number.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); give a log of requests") from error
    if not start.lstrip().startswith("{"):
        log = _read_csv(path)
    elif '"format_version"' in start.split("\n", 1)[0]:
        log = _read_decisions(path)
    else:
        log = _read_bench(path)
    return log


def check_enough(log: RequestLog, path: Path) -> None:
    """Raises InputError where a log has too few requests for a fit."""
    if (usable := int(log.counted.sum())) < FEWEST_REQUESTS:
        raise InputError(f"{path}: has {usable} finished requests; a fit needs {FEWEST_REQUESTS} at least")


def _read_csv(path: Path) -> RequestLog:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); give a requests.csv") from error
    if not rows:
        raise InputError(f"{path}: has no requests")
    if missing := [name for name in COLUMNS if name not in rows[0]]:
        raise InputError(f"{path}: line 1: no column {missing[0]!r}; needed: {', '.join(COLUMNS)}")
    column = {name: _numbers([row[name] for row in rows], name, path) for name in COLUMNS}
    server = column["instance"].astype(np.int64)
    names, server = np.unique(server, return_inverse=True)
    return _log(
        path,
        servers=tuple(map(str, names)),
        server=server,
        arrival_s=column["arrival_s"],
        dispatch_s=column["dispatch_s"],
        prompt=column["prompt_tokens"],
        output=column["output_tokens"],
        ttft_s=column["ttft_s"],
        e2e_s=column["e2e_s"],
    )


def _read_decisions(path: Path) -> RequestLog:
    from jaxroute.serve.decision_log import read_log

    rows = list(read_log(path))
    runs = Counter(row.run for row in rows)
    run = runs.most_common(1)[0][0]
    notes = [f"holds {len(runs)} runs of the router; only the longest, of {run}, is read"] if len(runs) > 1 else []
    own = [row for row in rows if row.run == run]
    known = [row for row in own if row.output_tokens]
    if len(known) < len(own):
        notes.append(f"{len(own) - len(known)} requests are left out, since nobody knows how many tokens they yielded")
    names = tuple(sorted({row.backend for row in known}))
    return _log(
        path,
        servers=names,
        server=np.asarray([names.index(row.backend) for row in known], np.int64),
        arrival_s=np.asarray([row.arrival_s for row in known]),
        dispatch_s=np.asarray([row.dispatch_s for row in known]),
        prompt=np.asarray([row.prompt_tokens for row in known], np.float64),
        output=np.asarray([row.output_tokens for row in known], np.float64),
        ttft_s=np.asarray([math.nan if row.ttft_s is None else row.ttft_s for row in known]),
        e2e_s=np.asarray([row.e2e_s if row.outcome == "finished" else math.nan for row in known]),
        notes=tuple(notes),
    )


def _read_bench(path: Path) -> RequestLog:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path}: is no requests.csv, decision log or benchmark result ({first_line(error)}); see the help"
        ) from error
    if missing := [name for name in BENCH_FIELDS if not isinstance(data.get(name), list)]:
        raise InputError(f"{path}: lacks {missing[0]}; run vllm bench serve with --save-result --save-detailed")
    count = len(data["start_times"])
    if odd := [name for name in BENCH_FIELDS if len(data[name]) != count]:
        raise InputError(f"{path}: {odd[0]} has {len(data[odd[0]])} entries, start_times has {count}; write it again")
    failed = np.asarray([bool(error) for error in data.get("errors") or [""] * count], bool)
    ttft = _numbers(data["ttfts"], "ttfts", path)
    start = _numbers(data["start_times"], "start_times", path)
    decode = np.asarray([sum(gaps) for gaps in data["itls"]], np.float64)
    output = _numbers(data["output_lens"], "output_lens", path)
    ran = ~failed & (output >= 1)
    notes = (f"{int((~ran).sum())} requests failed and are left out",) if not ran.all() else ()
    return _log(
        path,
        servers=("0",),
        server=np.zeros(int(ran.sum()), np.int64),
        arrival_s=start[ran],
        dispatch_s=start[ran],
        prompt=_numbers(data["input_lens"], "input_lens", path)[ran],
        output=output[ran],
        ttft_s=ttft[ran],
        e2e_s=(ttft + decode)[ran],
        notes=notes,
    )


def _log(
    path: Path,
    *,
    servers: tuple[str, ...],
    server: np.ndarray,
    arrival_s: np.ndarray,
    dispatch_s: np.ndarray,
    prompt: np.ndarray,
    output: np.ndarray,
    ttft_s: np.ndarray,
    e2e_s: np.ndarray,
    notes: tuple[str, ...] = (),
) -> RequestLog:
    needed = {"prompt_tokens": prompt >= 1, "output_tokens": output >= 1, "dispatch_s": np.isfinite(dispatch_s)}
    for name, good in (needed | {"arrival_s": np.isfinite(arrival_s)}).items():
        if not good.all():
            rule = "a number of at least 1" if name.endswith("tokens") else "a number"
            raise InputError(f"{path}: request {int(np.argmin(good))}: {name} is not {rule}; mend or remove the row")
    if (dispatch_s < arrival_s - 1e-6).any():
        row = int(np.argmax(dispatch_s < arrival_s - 1e-6))
        raise InputError(f"{path}: request {row} was dispatched before it arrived; check the columns")
    order = np.argsort(dispatch_s, kind="stable")
    counted = np.isfinite(e2e_s) & (e2e_s > 0)
    uncounted = int((~counted).sum())
    if uncounted:
        notes = (*notes, f"{uncounted} requests did not finish; they burden their server, but their times do not count")
    ttft_s = np.where(ttft_s > 0, ttft_s, np.nan)
    return RequestLog(
        name=path.name,
        servers=servers,
        server=server[order],
        dispatch_s=(dispatch_s - dispatch_s.min())[order],
        waited_s=np.maximum(dispatch_s - arrival_s, 0)[order],
        prompt_tokens=prompt.astype(np.int64)[order],
        output_tokens=output.astype(np.int64)[order],
        ttft_s=ttft_s[order],
        e2e_s=e2e_s[order],
        counted=counted[order],
        notes=notes,
    )


def _numbers(cells: list[object], name: str, path: Path) -> np.ndarray:
    """[N] float64; an empty cell is NaN."""
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        try:
            values[row] = math.nan if cell in ("", None) else float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            raise InputError(f"{path}: request {row}: {name} is {cell!r}, must be a number") from None
    return values
