"""Runs -> standings: every policy in every cell, and over all cells."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from jaxroute.candidates import Candidate
from jaxroute.evaluation import MEASURED
from jaxroute.leaderboard.grid import Entry, SloCapacity
from jaxroute.leaderboard.measure import Measured
from jaxroute.metrics import REFERENCE_POLICY, relative_change_percent
from jaxroute.paired import Comparison, Interval, best_of, compare, mean_interval, relative_difference

RANKED = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "tbt_mean_s", "goodput")
"""Quantities by which policies are ranked in a cell; less is better, but for goodput."""

Place = tuple[str, str, str]
"""Workload, fleet and scheduler."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """One policy in one cell.

    Attributes:
      comparison: means with intervals, and paired differences to round robin and to the best heuristic.
      ranks: by each of `RANKED`, 1 the best; equals share the mean of their places.
      above_bound_percent: how far the mean E2E is above the lower bound.
    """

    comparison: Comparison
    ranks: Mapping[str, float]
    above_bound_percent: float


@dataclasses.dataclass(frozen=True)
class CellStandings:
    """One cell.

    Attributes:
      workload, fleet, scheduler, load, rate_per_s, seeds: the cell.
      best_heuristic: the one with the lowest mean E2E.
      bound_s: mean over the seeds of the lower bound on the mean E2E.
      policies: by name, in the order in which they were asked for.
    """

    workload: str
    fleet: str
    scheduler: str
    load: float
    rate_per_s: float
    seeds: int
    best_heuristic: str
    bound_s: float
    policies: Mapping[str, Standing]

    @property
    def place(self) -> Place:
        """The block that the cell belongs to."""
        return self.workload, self.fleet, self.scheduler


@dataclasses.dataclass(frozen=True)
class BlockCapacity:
    """What the policies can bear in one block.

    Attributes:
      place: the block.
      rate_per_load: requests per second that load 1.0 means.
      loads: mean over the seeds of the highest load within the objective, by policy.
      against_reference: change against round robin, %.
    """

    place: Place
    rate_per_load: float
    loads: Mapping[str, Interval]
    against_reference: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True)
class Overall:
    """One policy over all cells.

    Attributes:
      mean_ranks: by each of `RANKED`.
      wins: cells in which no policy has a lower mean E2E.
      better, worse: cells in which its mean E2E is significantly below, above the best heuristic's.
      against_reference_percent: geometric mean over the cells of the mean E2E over round robin's, as a change in %.
      against_best_percent: likewise over the best heuristic's of each cell.
      above_bound_percent: likewise over the lower bound.
      goodput: mean over the cells.
      slo_load: mean over the blocks of the highest load within the objective; NaN where it was not measured.
    """

    mean_ranks: Mapping[str, float]
    wins: int
    better: int
    worse: int
    against_reference_percent: float
    against_best_percent: float
    above_bound_percent: float
    goodput: float
    slo_load: float


@dataclasses.dataclass(frozen=True)
class Board:
    """The leaderboard.

    Attributes:
      measured: what it rests on.
      cells: all cells.
      capacities: all blocks whose capacity was measured.
      overall: by policy, the best first: by mean rank of the mean E2E.
      names: policies in the order in which they were asked for.
    """

    measured: Measured
    cells: Sequence[CellStandings]
    capacities: Sequence[BlockCapacity]
    overall: Mapping[str, Overall]
    names: tuple[str, ...]


def board_of(measured: Measured, candidates: Sequence[Candidate]) -> Board:
    """The leaderboard of what was measured for all of the policies."""
    groups: dict[tuple[object, ...], list[Entry]] = {}
    for entry in measured.entries:
        groups.setdefault((entry.workload, entry.fleet, entry.scheduler, entry.load), []).append(entry)
    bounds: dict[tuple[object, ...], list[float]] = {}
    for each in measured.bounds:
        bounds.setdefault((each.workload, each.fleet, each.scheduler, each.load), []).append(each.e2e_mean_s)
    cells = [_cell(own, candidates, float(np.mean(bounds[key]))) for key, own in groups.items()]
    names = tuple(candidate.name for candidate in candidates)
    capacities = _block_capacities(measured.capacities, names)
    found = {name: _overall(name, cells, capacities) for name in names}
    order = sorted(names, key=lambda name: found[name].mean_ranks["e2e_mean_s"])
    return Board(measured, cells, capacities, {name: found[name] for name in order}, names)


def _cell(entries: Sequence[Entry], candidates: Sequence[Candidate], bound_s: float) -> CellStandings:
    columns = {
        candidate.name: {
            column: np.asarray([getattr(each, column) for each in entries if each.policy == candidate.name], np.float64)
            for column in (*MEASURED, "goodput")
        }
        for candidate in candidates
    }
    best = best_of(columns, [candidate.name for candidate in candidates if candidate.is_heuristic])
    compared = compare(columns, reference=REFERENCE_POLICY, best=best)
    ranks = {quantity: _ranks(compared, quantity) for quantity in RANKED}
    first = entries[0]
    return CellStandings(
        workload=first.workload,
        fleet=first.fleet,
        scheduler=first.scheduler,
        load=first.load,
        rate_per_s=first.rate_per_s,
        seeds=len(entries) // len(candidates),
        best_heuristic=best,
        bound_s=bound_s,
        policies={
            name: Standing(
                comparison=comparison,
                ranks={quantity: ranks[quantity][name] for quantity in RANKED},
                above_bound_percent=relative_change_percent(comparison.means["e2e_mean_s"].value, bound_s),
            )
            for name, comparison in compared.items()
        },
    )


def _ranks(compared: Mapping[str, Comparison], quantity: str) -> dict[str, float]:
    values = np.asarray([each.means[quantity].value for each in compared.values()])
    # A last digit in which two policies that decide alike differ is no difference.
    values = np.asarray([float(f"{value:.9g}") for value in values])
    ranks = stats.rankdata(-values if quantity == "goodput" else values, nan_policy="omit")
    return dict(zip(compared, ranks.tolist(), strict=True))


def _block_capacities(rows: Sequence[SloCapacity], names: Sequence[str]) -> list[BlockCapacity]:
    groups: dict[Place, list[SloCapacity]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.fleet, row.scheduler), []).append(row)
    found = []
    for place, own in groups.items():
        loads = {name: np.asarray([row.load for row in own if row.policy == name]) for name in names}
        rates = [row.rate_per_s / row.load for row in own if row.load > 0]
        found.append(
            BlockCapacity(
                place=place,
                rate_per_load=rates[0] if rates else math.nan,
                loads={name: mean_interval(values) for name, values in loads.items()},
                against_reference={
                    name: relative_difference(values, loads[REFERENCE_POLICY]) for name, values in loads.items()
                },
            )
        )
    return found


def _overall(name: str, cells: Sequence[CellStandings], capacities: Sequence[BlockCapacity]) -> Overall:
    own = [cell.policies[name] for cell in cells]
    best = [cell.policies[cell.best_heuristic] for cell in cells]
    against_best = [each.comparison.against_best["e2e_mean_s"] for each in own]
    means = [each.comparison.means["e2e_mean_s"].value for each in own]
    reference = [cell.policies[REFERENCE_POLICY].comparison.means["e2e_mean_s"].value for cell in cells]
    return Overall(
        mean_ranks={quantity: float(np.mean([each.ranks[quantity] for each in own])) for quantity in RANKED},
        wins=sum(_is_least(name, cell) for cell in cells),
        better=sum(each.significant and each.value < 0 for each in against_best),
        worse=sum(each.significant and each.value > 0 for each in against_best),
        against_reference_percent=_geometric_change(means, reference),
        against_best_percent=_geometric_change(means, [each.comparison.means["e2e_mean_s"].value for each in best]),
        above_bound_percent=_geometric_change(means, [cell.bound_s for cell in cells]),
        goodput=float(np.mean([each.comparison.means["goodput"].value for each in own])),
        slo_load=float(np.mean([each.loads[name].value for each in capacities])) if capacities else math.nan,
    )


def _is_least(name: str, cell: CellStandings) -> bool:
    ranks = {other: each.ranks["e2e_mean_s"] for other, each in cell.policies.items()}
    return ranks[name] == min(ranks.values())


def _geometric_change(values: Sequence[float], references: Sequence[float]) -> float:
    ratios = np.asarray(values) / np.asarray(references)
    return float(100 * (np.exp(np.mean(np.log(ratios))) - 1))
