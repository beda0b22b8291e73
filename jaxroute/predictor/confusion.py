"""What a predictor was measured to take each length bucket for, by task; NumPy only.

Axis letters: N requests, B buckets, K tasks.
"""

from __future__ import annotations

import dataclasses

import numpy as np

NO_TASK = -1
"""Index of a request whose task is none of the predictor's."""


@dataclasses.dataclass(frozen=True, eq=False)
class Confusion:
    """Counts of held-out rows: true bucket down, predicted bucket across.

    Attributes:
      overall: [B, B] int64, of all rows; measured without any hint where the predictor can do without.
      by_task: [K, B, B] int64, of each task's rows.
    """

    overall: np.ndarray
    by_task: np.ndarray

    @classmethod
    def measured(
        cls, true: np.ndarray, predicted: np.ndarray, task: np.ndarray, *, buckets: int, tasks: int
    ) -> Confusion:
        """Counts rows.

        Args:
          true: [N] true bucket of each row, in 0..B-1.
          predicted: [N] predicted bucket.
          task: [N] task, in 0..K-1, or `NO_TASK`.
          buckets: B.
          tasks: K.
        """
        by_task = np.zeros((tasks + 1, buckets, buckets), np.int64)
        np.add.at(by_task, (np.asarray(task), np.asarray(true), np.asarray(predicted)), 1)
        return cls(by_task.sum(axis=0), by_task[:tasks])

    def draw(self, true: np.ndarray, task: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """[N] int64, a predicted bucket for each request, as often wrong in each way as was measured.

        A true bucket that no measured row of the task had is taken for what the rows of all tasks were taken for; one
        that no row had at all is predicted right.

        Args:
          true: [N] true bucket.
          task: [N] task, or `NO_TASK` for the rows of all tasks.
          rng: draws one number for each request.
        """
        tables = np.concatenate([self.by_task, self.overall[None]]).astype(np.float64)
        seen = tables.sum(axis=2, keepdims=True) > 0
        tables = np.where(seen, tables, tables[-1:])
        tables = np.where(tables.sum(axis=2, keepdims=True) > 0, tables, np.eye(len(self.overall)))
        # The place of NO_TASK is the last one.
        upto = np.cumsum(tables, axis=2)[task, true]
        return np.sum(upto <= rng.random(len(true))[:, None] * upto[:, -1:], axis=1)

    def accuracy(self) -> float:
        """Share of all rows that were predicted right; 0 without any row."""
        return float(np.trace(self.overall)) / max(1.0, float(self.overall.sum()))
