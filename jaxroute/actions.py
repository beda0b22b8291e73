"""What a router did over time, from the records of a run: what it sent where, and when it held.

Axis letters: I instances, T router intervals, K bins of time.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.plots import timeline_of
from jaxroute.results import RunResult


@dataclasses.dataclass(frozen=True)
class ActionCounts:
    """Decisions by bins of time.

    Attributes:
      edges_s: [K + 1] float64, borders of the bins, seconds.
      sent: [K, I] int64, requests that were sent to each instance.
      held: [K] int64, router intervals in which a request waited at the router and none was sent.
    """

    edges_s: np.ndarray
    sent: np.ndarray
    held: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        """[K, I + 1] float64, of the decisions in each bin, hold last; NaN where there was nothing to decide."""
        counts = np.column_stack([self.sent, self.held]).astype(np.float64)
        total = counts.sum(axis=1, keepdims=True)
        return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)

    @property
    def hold_share(self) -> float:
        """Of all decisions."""
        return float(self.held.sum() / max(1, self.held.sum() + self.sent.sum()))


def is_held(result: RunResult) -> np.ndarray:
    """[T] bool, router intervals in which a request waited at the router and none was sent.

    Raises:
      InputError: the run has no timeline.
    """
    timeline = timeline_of(result)
    sends = np.zeros(len(timeline.time_s), bool)
    sends[_interval_of_dispatch(result, len(sends))] = True
    return (timeline.router_queue > 0) & ~sends


def action_counts(result: RunResult, bins: int) -> ActionCounts:
    """The decisions of a run in bins of one width, from its first interval to its last with work.

    Args:
      result: a run with a timeline.
      bins: K; fewer where the run has not as many intervals.

    Raises:
      InputError: the run has no timeline.
    """
    held = is_held(result)
    count = len(held)
    width = -(-count // min(bins, count))
    size = -(-count // width)
    sent = np.zeros((size, result.instances), np.int64)
    np.add.at(sent, (_interval_of_dispatch(result, count) // width, result.records.instance), 1)
    edges = np.minimum(np.arange(size + 1) * width, count) * result.dt_s
    return ActionCounts(edges, sent, np.bincount(np.flatnonzero(held) // width, minlength=size))


def _interval_of_dispatch(result: RunResult, count: int) -> np.ndarray:
    """[N] int64, router interval in which each request was sent, of `count`."""
    step = np.round(result.records.dispatch_s / result.dt_s).astype(np.int64)
    return np.clip(step, 0, count - 1)
