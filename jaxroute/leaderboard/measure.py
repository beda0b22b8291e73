"""Measures a grid, block by block and load by load; whatever has been measured before is taken from the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

from jaxroute.bounds.lower import lower_bound
from jaxroute.candidates import Candidate
from jaxroute.evaluate import row_of, run_cell
from jaxroute.leaderboard.entrants import fingerprint
from jaxroute.leaderboard.grid import Block, Bounded, Entry, Settings, SloCapacity, SmallCase
from jaxroute.leaderboard.slo_capacity import slo_capacities
from jaxroute.leaderboard.small_case import small_cases
from jaxroute.leaderboard.store import Store
from jaxroute.metrics import summarise
from jaxroute.progress import interval_limit
from jaxroute.slo import goodput

Report = Callable[[int, int, str], None]
"""Called with the parts done, all of them, and what comes next."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that was measured.

    Attributes:
      entries: runs, cell by cell, policy by policy and seed by seed.
      bounds: of each cell and seed.
      capacities: of each block, policy and seed.
      small: the small cases.
    """

    entries: list[Entry]
    bounds: list[Bounded]
    capacities: list[SloCapacity]
    small: list[SmallCase]


def measure(
    blocks: Sequence[Block], candidates: Sequence[Candidate], settings: Settings, store: Store, report: Report
) -> Measured:
    """Runs what the store does not hold yet, and keeps it.

    Raises:
      InputError: see `evaluate`.
      OSError: the store cannot be written.
    """
    measured = Measured([], [], [], [])
    parts = len(settings.loads) + bool(settings.capacity_levels) + bool(settings.search_rounds)
    done, total = 0, parts * len(blocks)
    for block in blocks:
        for load in settings.loads:
            report(done, total, f"{block.label}, load {load:g}")
            measured.entries.extend(entries_at(block, load, candidates, settings, store))
            measured.bounds.extend(bounds_at(block, load, settings, store))
            done += 1
        if settings.capacity_levels:
            report(done, total, f"{block.label}, capacity within the objective")
            measured.capacities.extend(_capacities(block, candidates, settings, store))
            done += 1
        if settings.search_rounds:
            report(done, total, f"{block.label}, clairvoyant search")
            measured.small.extend(_small(block, candidates, settings, store))
            done += 1
    report(done, total, "")
    return measured


def entries_at(
    block: Block, load: float, candidates: Sequence[Candidate], settings: Settings, store: Store
) -> list[Entry]:
    """The runs of one cell, policy by policy and seed by seed; only policies that the store does not know are run."""
    keys = {each.name: _policy_key(block, each, settings, load=load) for each in candidates}
    kept = {name: store.find(key) for name, key in keys.items()}
    if missing := [each for each in candidates if kept[each.name] is None]:
        cell = block.cell(load, settings)
        limit = interval_limit(cell.tables, block.fleet.profiles, block.fleet.dt)
        new: dict[str, list[dict[str, Any]]] = {each.name: [] for each in missing}
        for number, result in run_cell(cell, missing, most_intervals=limit):
            row = row_of(cell, summarise(result), cell.seeds[number])
            entry = Entry(**vars(row), fleet=block.fleet_name, goodput=goodput(result, settings.slo))
            new[result.policy].append(dataclasses.asdict(entry))
        kept |= {name: store.keep(keys[name], rows) for name, rows in new.items()}
    return [Entry(**row) for each in candidates for row in cast(list[dict[str, Any]], kept[each.name])]


def bounds_at(block: Block, load: float, settings: Settings, store: Store) -> list[Bounded]:
    """The lower bounds of one cell, seed by seed."""

    def compute() -> object:
        tables = block.tables(load, settings.seeds)
        return [dataclasses.asdict(lower_bound(table, block.fleet)) for table in tables]

    key = {"what": "bound", "load": load, "seeds": settings.seeds, **block.key}
    found = cast(list[dict[str, float]], store.result(key, compute))
    return [
        Bounded(block.workload_label, block.fleet_name, block.scheduler, load, seed, **each)
        for seed, each in zip(settings.seeds, found, strict=True)
    ]


def _capacities(block: Block, candidates: Sequence[Candidate], settings: Settings, store: Store) -> list[SloCapacity]:
    keys = {each.name: _policy_key(block, each, settings, levels=settings.capacity_levels) for each in candidates}
    kept = {name: store.find(key) for name, key in keys.items()}
    if missing := [each for each in candidates if kept[each.name] is None]:
        found = slo_capacities(block, missing, settings, lambda rounds: None)
        for each in missing:
            rows = [dataclasses.asdict(row) for row in found if row.policy == each.name]
            kept[each.name] = store.keep(keys[each.name], rows)
    return [SloCapacity(**row) for each in candidates for row in cast(list[dict[str, Any]], kept[each.name])]


def _small(block: Block, candidates: Sequence[Candidate], settings: Settings, store: Store) -> list[SmallCase]:
    own = (settings.small_requests, settings.small_cases, settings.search_rounds)
    key = {
        "what": "small case",
        "names": [block.workload_label, block.fleet_name],
        "own": own,
        "seeds": settings.seeds,
        "prediction": settings.prediction,
        # The search begins with all of them.
        "policies": [fingerprint(each) for each in candidates],
        **block.key,
    }

    def compute() -> object:
        return [dataclasses.asdict(case) for case in small_cases(block, candidates, settings)]

    return [SmallCase(**row) for row in cast(list[dict[str, Any]], store.result(key, compute))]


def _policy_key(block: Block, candidate: Candidate, settings: Settings, **more: object) -> dict[str, object]:
    return {
        "policy": fingerprint(candidate),
        "seeds": settings.seeds,
        "prediction": settings.prediction,
        "slo": dataclasses.asdict(settings.slo),
        # Names stand in the rows.
        "names": [block.workload_label, block.fleet_name],
        **more,
        **block.key,
    }
