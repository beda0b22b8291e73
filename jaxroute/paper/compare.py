"""What the parts that compare routers have in common: cells, and sentences from the records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxroute.paired import Interval, mean_interval, relative_difference
from jaxroute.paper.facts import shift
from jaxroute.paper.measure import Columns
from jaxroute.paper.part import Cell, Row, Table

REFERENCE = "round-robin"

NAMES = {
    "round-robin": "round robin",
    "join-shortest-queue": "join shortest queue (requests)",
    "fewest-outstanding-tokens": "join shortest queue (tokens left, as in the paper)",
    "min-min": "min-min",
    "max-capacity": "maximum capacity usage",
    "dedicated-small-large": "dedicated small-large",
    "decode-balancer": "decode balancer",
    "baseline": "baseline RL (PPO)",
    "aware": "workload-aware RL (PPO)",
    "guided": "workload-guided RL (PPO)",
    "dqn": "workload-guided RL (Double DQN, the paper's algorithm)",
}
"""Policies as tables call them."""

LEARNED = ("baseline", "aware", "guided")
"""The paper's variants, the least guided first."""


def name_of(policy: str) -> str:
    """What a table calls a policy; one that is trained again for another fleet like the first."""
    return NAMES.get(policy) or NAMES.get(policy.rsplit("-", 1)[0], policy)


def improvement(own: np.ndarray, reference: np.ndarray) -> Interval:
    """By how many % of the reference's mean the own mean is lower, of [seeds] values each."""
    change = relative_difference(own, reference)
    return Interval(-change.value, -change.high, -change.low, change.seeds)


def improved(
    own: Columns, reference: Columns, column: str = "makespan_s", printed: float | None = None, source: str = ""
) -> Cell:
    """An improvement over round robin, %."""
    value = improvement(own[column], reference[column])
    return Cell(value, printed, decimals=2, signed=True, source=source)


def mean(own: Columns, column: str, printed: float | None = None, *, scale: float = 1.0, source: str = "") -> Cell:
    """The mean of a column over the seeds."""
    return Cell(mean_interval(scale * own[column]), printed, source=source)


def saved(own: Columns, reference: Columns, column: str = "makespan_s", printed: float | None = None) -> Cell:
    """By how much the own mean is below the reference's, of paired seeds."""
    return Cell(mean_interval(reference[column] - own[column]), printed, decimals=2, signed=True)


QUANTITIES: Mapping[str, Callable[[Columns], Cell]] = {
    "makespan s": lambda own: mean(own, "makespan_s"),
    "mean E2E s": lambda own: mean(own, "e2e_mean_s"),
    "preemptions": lambda own: mean(own, "preemptions"),
    "recomputed, % of all tokens": lambda own: mean(own, "recomputed_share", scale=100),
    "recomputing, % of busy time": lambda own: Cell(mean_interval(100 * own["recomputing_s"] / own["busy_s"])),
    "idle servers, % of time": lambda own: mean(own, "idle_share", scale=100),
    "of it after the last arrival": lambda own: mean(own, "drain_idle_share", scale=100),
    "requests at a busy server": lambda own: mean(own, "in_flight_mean"),
    "router wait s": lambda own: mean(own, "router_wait_mean_s"),
    "instance wait s": lambda own: mean(own, "instance_wait_mean_s"),
    "in service s": lambda own: mean(own, "service_mean_s"),
    "most requests of a server, % of an even share": lambda own: mean(own, "most_share", scale=100),
    "fewest": lambda own: mean(own, "least_share", scale=100),
}
"""What the records say of a run, by the headings of tables."""

RECORDED = (
    "preemptions",
    "recomputed, % of all tokens",
    "recomputing, % of busy time",
    "idle servers, % of time",
    "of it after the last arrival",
    "router wait s",
    "instance wait s",
    "in service s",
    "most requests of a server, % of an even share",
)
"""Quantities of the parts that explain one comparison."""


def records(
    heading: str,
    runs: Iterable[tuple[str, Columns]],
    command: str,
    seeds: str,
    *,
    quantities: Sequence[str] = RECORDED,
    title: str = "From the records",
) -> Table:
    """A table of what the records say of some runs.

    Args:
      heading: of the labels.
      runs: label and columns of each.
      command, seeds: of the table.
      quantities: of `QUANTITIES`.
      title: of the table.
    """
    rows = tuple(Row(label, tuple(QUANTITIES[each](own) for each in quantities)) for label, own in runs)
    return Table(title, (heading, *quantities), rows, command, seeds)


def reason(
    policy: str, own: Columns, reference: Columns, printed: float | None = None, *, base: str = "round robin"
) -> str:
    """Why a policy's makespan is what it is against round robin's, from both records; `base` names the latter."""
    change = shift(own, reference)
    factors = {
        "time spent computing tokens again": change.recomputation,
        "the other busy time, longer where steps hold less": change.batching,
        "idle servers": change.idleness,
    }
    largest = max(factors, key=lambda name: abs(factors[name]))
    counted = {name: float(np.mean(own[name])) for name in ("preemptions", "recomputed_share", "drain_idle_share")}
    other = {name: float(np.mean(reference[name])) for name in counted}
    shares = ("recomputed_share", "drain_idle_share")
    recomputed, drained = (f"{100 * counted[name]:.1f} % against {100 * other[name]:.1f} %" for name in shares)
    parts = ", ".join(f"{name} {value:+.1f} %" for name, value in factors.items())
    against = "" if printed is None else f" (printed: {-printed:+.2f} %)"
    return (
        f"{name_of(policy)}: makespan {change.makespan:+.1f} % against {base}{against}. The factors, as changes: "
        f"{parts}; the largest is {largest}. Preemptions {counted['preemptions']:,.0f} against "
        f"{other['preemptions']:,.0f}; recomputed of all tokens {recomputed}; servers' time idle after the last "
        f"arrival {drained}."
    )


def bound_by_recomputation(reference: Columns) -> str:
    """How much could be gained by never computing a token twice."""
    tokens = float(np.mean(reference["recomputed_share"]))
    share = float(np.mean(reference["recomputing_s"]) / np.mean(reference["busy_s"]))
    idle = float(np.mean(reference["idle_share"]))
    return (
        f"What there is to win over round robin: {100 * tokens:.1f} % of the tokens that its servers compute are "
        f"computed again after preemptions, which takes {100 * share:.1f} % of their busy time, as prompts are cheap; "
        f"and servers hold no request for {100 * idle:.1f} % of its makespan. A router that avoided both and lost "
        f"nothing would make it {100 * (1 - (1 - share) * (1 - idle)):.1f} % shorter."
    )


def latency_parts(own: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
    """Mean seconds at the router, in an instance's queue, and from first admission to the last token; the mean E2E."""
    columns = ("router_wait_mean_s", "instance_wait_mean_s", "service_mean_s")
    router, instance, service = (float(np.mean(own[column])) for column in columns)
    return router, instance, service


def significant(cells: Sequence[Cell]) -> int:
    """How many intervals leave out 0."""
    return sum(cell.value is not None and cell.value.significant for cell in cells)
