"""The highest load at which a policy keeps the objective, by bisection, each policy and seed by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxroute.candidates import Candidate
from jaxroute.evaluate import Cell, run_cell
from jaxroute.leaderboard.grid import Block, Settings, SloCapacity
from jaxroute.progress import interval_limit
from jaxroute.slo import ATTAINMENT, goodput

LOWEST_LOAD, HIGHEST_LOAD = 0.2, 1.75
"""Ends of the loads that are searched; a policy that fails at the lower one has capacity 0."""


def levels(rounds: int) -> tuple[float, ...]:
    """The loads that a bisection of so many rounds tells apart, 2^rounds - 1, ascending."""
    count = 2**rounds - 1
    return tuple(float(load) for load in np.linspace(LOWEST_LOAD, HIGHEST_LOAD, count).round(4))


def slo_capacities(
    block: Block, candidates: Sequence[Candidate], settings: Settings, advance: Callable[[int], None]
) -> list[SloCapacity]:
    """The capacities of all policies on all seeds, policy by policy.

    The requests of a seed are the same at every load, their arrivals stretched; a program that is compiled once runs
    each policy and seed at the load that its own bisection has come to. Where goodput is not monotone over the loads,
    it is one of several crossings that is found.

    Args:
      block: where.
      candidates: the policies.
      settings: seeds, objective, levels.
      advance: called with the rounds that have just been done.
    """
    names = [candidate.name for candidate in candidates]
    # `held` levels are known to be kept, the lowest of them all; `failed` is the number of the first that is not.
    held = np.zeros((len(names), len(settings.seeds)), np.int64)
    failed = np.full_like(held, len(settings.capacity_levels) + 1)
    longest = block.tables(settings.capacity_levels[0], settings.seeds)
    limit = interval_limit(longest, block.fleet.profiles, block.fleet.dt)
    while (failed - held > 1).any():
        level = (held + failed) // 2
        cell, tables_of = _cell_at(block, settings, names, level)
        kept = np.zeros(held.shape, bool)
        for number, result in run_cell(cell, candidates, most_intervals=limit, tables_of=tables_of):
            place = names.index(result.policy)
            seed = settings.seeds.index(cell.seeds[number])
            kept[place, seed] = goodput(result, settings.slo) >= ATTAINMENT
        held, failed = np.where(kept, level, held), np.where(kept, failed, level)
        advance(1)
    loads = np.asarray([0.0, *settings.capacity_levels])[held]
    return [
        SloCapacity(
            workload=block.workload_label,
            fleet=block.fleet_name,
            scheduler=block.scheduler,
            policy=name,
            seed=seed,
            load=float(loads[row, column]),
            rate_per_s=float(loads[row, column] * block.capacity),
        )
        for row, name in enumerate(names)
        for column, seed in enumerate(settings.seeds)
    ]


def _cell_at(
    block: Block, settings: Settings, names: Sequence[str], level: np.ndarray
) -> tuple[Cell, dict[str, list[int]]]:
    """The tables of every seed at every level that is asked for, and the numbers of those of each policy.

    Args:
      block, settings: as above.
      names: P policies.
      level: [P, seeds] level of each, counted from 1.
    """
    wanted = sorted({(int(at), column) for row in level for column, at in enumerate(row)})
    number_of = {pair: number for number, pair in enumerate(wanted)}
    tables = tuple(
        block.draws.table(settings.seeds[column], settings.capacity_levels[at - 1] * block.capacity)[0]
        for at, column in wanted
    )
    seeds = tuple(settings.seeds[column] for _, column in wanted)
    cell = Cell(block.workload_label, block.fleet, float("nan"), float("nan"), seeds, tables, settings.prediction)
    own = {name: [number_of[int(at), column] for column, at in enumerate(level[row])] for row, name in enumerate(names)}
    return cell, own
