"""The records of a run -> numbers that tell why it took as long as it did."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxroute import metrics
from jaxroute.results import RunResult


def facts_of(result: RunResult) -> dict[str, float]:
    """A run in numbers: those of `metrics.Summary`, and besides

    - `service_mean_s`: mean time from first admission to the last token, preemptions included;
    - `busy_s`: seconds for which the servers hold any request, summed over them: an engine that holds one works;
    - `idle_share`: share of servers x makespan in which they hold none;
    - `drain_idle_share`: the part of it after the last arrival;
    - `recomputed_share`: tokens computed again after preemptions, of those and the prompt and output tokens;
    - `in_flight_mean`: requests that a server holds while it is busy;
    - `most_share`, `least_share`: of the requests, of the server that got the most and the least, over an even share.
    """
    summary = metrics.summarise(result)
    plain = {name: float(value) for name, value in vars(summary).items() if isinstance(value, int | float)}
    records, table = result.records, result.table
    begin_s, end_s = float(table.arrival_s.min()), float(records.finish_s.max())
    last_s = min(float(table.arrival_s.max()), end_s)
    room_s = result.instances * (end_s - begin_s)
    busy_s = drain_s = 0.0
    for instance in range(result.instances):
        own = records.instance == instance
        busy_s += covered_s(records.dispatch_s[own], records.finish_s[own], begin_s, end_s)
        drain_s += end_s - last_s - covered_s(records.dispatch_s[own], records.finish_s[own], last_s, end_s)
    served = float(table.prompt_tokens.sum() + table.output_tokens.sum())
    work = served + float(records.recomputed_tokens.sum())
    share = np.asarray(summary.action_share) * result.instances
    return {
        **plain,
        "service_mean_s": float((records.finish_s - records.start_s).mean()),
        "busy_s": busy_s,
        "idle_share": 1 - busy_s / room_s,
        "drain_idle_share": drain_s / room_s,
        "recomputed_share": (work - served) / work,
        "in_flight_mean": float((records.finish_s - records.dispatch_s).sum()) / busy_s,
        "most_share": float(share.max()),
        "least_share": float(share.min()),
    }


def covered_s(start_s: np.ndarray, end_s: np.ndarray, first_s: float, last_s: float) -> float:
    """Seconds of [first_s, last_s] that lie in at least one of the spans [start_s, end_s] ([N] each)."""
    start_s, end_s = np.clip(start_s, first_s, last_s), np.clip(end_s, first_s, last_s)
    order = np.argsort(start_s, kind="stable")
    start_s, end_s = start_s[order], end_s[order]
    if not len(start_s):
        return 0.0
    reached = np.maximum.accumulate(end_s)
    # Each span adds what lies beyond all before it.
    before = np.concatenate([[first_s], reached[:-1]])
    return float(np.maximum(end_s - np.maximum(start_s, before), 0.0).sum())


@dataclasses.dataclass(frozen=True)
class Shift:
    """Why one makespan differs from another: the three factors whose product is their ratio, as changes in %.

    A makespan is the time that busy servers need for the tokens that are asked of them, over the share of their busy
    time that is not spent on computing tokens again, over the number of servers that are busy.

    Attributes:
      makespan: of the whole.
      recomputation: by busy time that goes into tokens computed again.
      batching: by the rest of the busy time, which is longer where steps hold less.
      idleness: by servers without work, the drain included.
    """

    makespan: float
    recomputation: float
    batching: float
    idleness: float


def shift(own: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> Shift:
    """The factors between two policies, of the means over the same seeds.

    Args:
      own, reference: columns of `facts_of`, [seeds] each, and `recomputing_s`, see `measure`.
    """

    def mean(column: str, source: Mapping[str, np.ndarray]) -> float:
        return float(np.asarray(source[column], np.float64).mean())

    def useful_s(source: Mapping[str, np.ndarray]) -> float:
        return mean("busy_s", source) - mean("recomputing_s", source)

    makespan = mean("makespan_s", own) / mean("makespan_s", reference)
    busy = mean("busy_s", own) / mean("busy_s", reference)
    useful = useful_s(own) / useful_s(reference)
    return Shift(
        makespan=100 * (makespan - 1),
        recomputation=100 * (busy / useful - 1),
        batching=100 * (useful - 1),
        idleness=100 * (makespan / busy - 1),
    )
