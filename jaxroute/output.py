"""Runs -> files: one row per request as CSV, summaries as JSON; a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxroute import metrics
from jaxroute.errors import InputError
from jaxroute.metrics import Summary, reference_summary, relative_change_percent
from jaxroute.results import RunResult


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to, which takes its place when the block ends without an error.

    If the block raises, the temporary file is removed and whatever was at `path` stays as it was.

    Raises:
      OSError: the folder is missing or cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def report_paths(folder: Path, *names: str) -> Iterator[list[Path]]:
    """Temporary paths for some files of a folder, see `atomic_path`: none takes its place before the block has ended.

    Raises:
      OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(atomic_path(folder / name)) for name in names]


def write_rows(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Writes a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def request_columns(result: RunResult) -> dict[str, np.ndarray]:
    """The columns of the per-request file, each [N]; times are in seconds, NaN where a request has no such value."""
    table, records = result.table, result.records
    return {
        "request_id": table.request_id,
        "arrival_s": table.arrival_s,
        "prompt_tokens": table.prompt_tokens,
        "output_tokens": table.output_tokens,
        "instance": records.instance,
        "dispatch_s": records.dispatch_s,
        "ttft_s": metrics.ttft_s(result),
        "e2e_s": metrics.e2e_s(result),
        "tbt_mean_s": metrics.tbt_mean_s(result),
        "tbt_max_s": metrics.tbt_max_s(result),
        "router_wait_s": metrics.router_wait_s(result),
        "preemptions": records.preemptions,
        "instance_wait_s": metrics.instance_wait_s(result),
        "recomputed_tokens": records.recomputed_tokens,
        "task": np.asarray(table.task_names)[table.task],
    }


def write_requests_csv(result: RunResult, path: str | Path) -> None:
    """Writes `<policy>.requests.csv`: one row per request, times to 1e-7 s, an empty field for what does not exist.

    Raises:
      OSError: the folder is missing or cannot be written.
    """
    columns = request_columns(result)
    with atomic_path(path) as temporary:
        fields = (map(csv_field, values.tolist()) for values in columns.values())
        write_rows(temporary, columns, zip(*fields, strict=True))


def write_summary_json(summaries: Sequence[Summary], settings: Mapping[str, object], path: str | Path) -> None:
    """Writes `summary.json`: settings, policies (name -> summary), and each number's change against the reference, %.

    What does not exist is null.

    Raises:
      InputError: two summaries have the same policy name.
      TypeError: a setting has no JSON form.
      OSError: the folder is missing or cannot be written.
    """
    policies: dict[str, object] = {}
    for summary in summaries:
        if summary.policy in policies:
            raise InputError(f"{path}: two runs are named {summary.policy!r}: give each policy once")
        policies[summary.policy] = {
            field: value for field, value in dataclasses.asdict(summary).items() if field != "policy"
        }
    data = {"settings": settings, "policies": policies, **_changes(summaries)}
    text = json.dumps(plain_json(data), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _changes(summaries: Sequence[Summary]) -> dict[str, object]:
    if not summaries:
        return {}
    reference = reference_summary(summaries)
    fields = [name for name, value in vars(reference).items() if isinstance(value, float | int) and name != "count"]
    changes = {
        summary.policy: {
            name: relative_change_percent(getattr(summary, name), getattr(reference, name)) for name in fields
        }
        for summary in summaries
    }
    return {"reference": reference.policy, "change_percent": changes}


def csv_field(value: object) -> str:
    """A value as a field of a CSV file: floats to 1e-7, empty where they are NaN."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:z.7f}"


def plain_json(value: object) -> object:
    """The value in JSON's own types: NumPy and paths converted, a number that JSON cannot hold as null."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
