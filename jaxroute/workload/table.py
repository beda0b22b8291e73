"""The host-side form of a workload: one row per request, checked once, before anything runs."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.errors import InputError

NO_TASK = "none"


@dataclasses.dataclass(frozen=True)
class RequestTable:
    """N requests in order of arrival (NumPy, on the host).

    Attributes:
      arrival_s: [N] float64, seconds, ascending, when the request reaches the router.
      prompt_tokens: [N] int64, >= 1.
      output_tokens: [N] int64, >= 1, the true output length, which no router may see.
      task: [N] int64, index into `task_names`.
      task_names: names of the tasks; `("none",)` where the source knows no tasks.
      request_id: [N] int64, the row of the request in its source (0-based).
      name: what the workload is called in tables and files.
    """

    arrival_s: np.ndarray
    prompt_tokens: np.ndarray
    output_tokens: np.ndarray
    task: np.ndarray
    task_names: tuple[str, ...]
    request_id: np.ndarray
    name: str

    @classmethod
    def create(
        cls,
        arrival_s: np.ndarray,
        prompt_tokens: np.ndarray,
        output_tokens: np.ndarray,
        *,
        name: str,
        task: np.ndarray | None = None,
        task_names: tuple[str, ...] = (NO_TASK,),
        request_id: np.ndarray | None = None,
    ) -> RequestTable:
        """Sorts by arrival (stable), fills in what is missing and checks every field.

        Raises:
          InputError: an empty table, fields of different lengths, or a value out of its range.
        """
        arrival_s = np.asarray(arrival_s, np.float64)
        count = len(arrival_s)
        if count == 0:
            raise InputError(f"{name}: the workload has no requests")
        columns = {
            "prompt_tokens": np.asarray(prompt_tokens, np.int64),
            "output_tokens": np.asarray(output_tokens, np.int64),
            "task": np.zeros(count, np.int64) if task is None else np.asarray(task, np.int64),
            "request_id": np.arange(count) if request_id is None else np.asarray(request_id, np.int64),
        }
        for column, values in columns.items():
            if values.shape != (count,):
                raise InputError(f"{name}: {column} has {len(values)} rows, arrival_s has {count}")
        _reject(~np.isfinite(arrival_s) | (arrival_s < 0), "arrival_s must be a finite number of seconds >= 0", name)
        _reject(columns["prompt_tokens"] < 1, "prompt_tokens must be at least 1", name)
        _reject(columns["output_tokens"] < 1, "output_tokens must be at least 1", name)
        _reject((columns["task"] < 0) | (columns["task"] >= len(task_names)), "task is not in task_names", name)
        order = np.argsort(arrival_s, kind="stable")
        return cls(arrival_s[order], task_names=task_names, name=name, **{k: v[order] for k, v in columns.items()})

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def mean_rate(self) -> float:
        """Requests per second over the span of the arrivals (infinite where all arrive at once)."""
        span = float(self.arrival_s[-1] - self.arrival_s[0])
        return (len(self) - 1) / span if span > 0 else float("inf")

    def replace(self, **changes: object) -> RequestTable:
        """A copy with some fields changed (not checked again)."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def take(self, rows: np.ndarray) -> RequestTable:
        """The table of the given rows (indices or a mask), in their present order."""
        columns = ("arrival_s", "prompt_tokens", "output_tokens", "task", "request_id")
        return self.replace(**{column: getattr(self, column)[rows] for column in columns})


def _reject(bad: np.ndarray, rule: str, name: str) -> None:
    if bad.any():
        raise InputError(f"{name}: row {int(np.argmax(bad))}: {rule}")
