"""Small cases in which a clairvoyant search shows how far policies are from what can be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxroute import metrics
from jaxroute.bounds.lower import lower_bound
from jaxroute.bounds.search import Schedules, Simulator, search
from jaxroute.candidates import Candidate
from jaxroute.capacity import estimate_capacity, requests_needed
from jaxroute.evaluate import Cell, run_cell
from jaxroute.leaderboard.grid import Block, Settings, SmallCase
from jaxroute.progress import interval_limit
from jaxroute.results import RunResult

SEQUENCES = 4
"""Sequences that a server of a small case runs at once: with more, a few requests would not compete for anything."""

LOAD = 1.0
CAPACITY_SEED = 2**31 - 1


def small_cases(block: Block, candidates: Sequence[Candidate], settings: Settings) -> list[SmallCase]:
    """The first requests of a few seeds on the block's servers, each cut down to `SEQUENCES`, just saturated."""
    profiles = tuple(dataclasses.replace(profile, max_num_seqs=SEQUENCES) for profile in block.fleet.profiles)
    fleet = dataclasses.replace(block.fleet, profiles=profiles)
    draws = dataclasses.replace(block.draws, requests=settings.small_requests)
    capacity = estimate_capacity(fleet, draws.sample(requests_needed(fleet), CAPACITY_SEED))
    seeds = settings.seeds[: settings.small_cases]
    tables = tuple(draws.table(seed, LOAD * capacity)[0] for seed in seeds)
    cell = Cell(block.workload_label, fleet, LOAD, LOAD * capacity, seeds, tables, settings.prediction)
    limit = interval_limit(tables, profiles, fleet.dt)
    runs = list(run_cell(cell, candidates, most_intervals=limit))
    return [
        _case(block, cell, number, [run for at, run in runs if at == number], settings) for number in range(len(seeds))
    ]


def _case(block: Block, cell: Cell, number: int, runs: list[RunResult], settings: Settings) -> SmallCase:
    table, seed = cell.tables[number], cell.seeds[number]
    found = search(Simulator(cell.fleet, table), Schedules.of(runs), seed=seed, rounds=settings.search_rounds)
    return SmallCase(
        workload=block.workload_label,
        fleet=block.fleet_name,
        scheduler=block.scheduler,
        seed=seed,
        requests=len(table),
        found_s=found.e2e_mean_s,
        bound_s=lower_bound(table, cell.fleet).e2e_mean_s,
        policies={run.policy: float(metrics.e2e_s(run).mean()) for run in runs},
        simulated=found.simulated,
    )
