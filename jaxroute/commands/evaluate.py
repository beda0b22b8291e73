"""`jaxroute evaluate`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from jaxroute.commands.console import progress_bar, table_console
from jaxroute.commands.options import FleetOptions, check_folder, names_of, rate_warning, smallest_profile
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.candidates import Candidate
    from jaxroute.evaluate import Cell
    from jaxroute.evaluation import Capacity
    from jaxroute.simulate import Fleet
    from jaxroute.workload.draws import Draws
    from jaxroute.workload.limits import LimitReport

Number = TypeVar("Number", int, float)

CAPACITY_SEED = 2**31 - 1
"""Of the requests by which capacities are estimated; those of evaluations are below it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate(FleetOptions):
    """Compare routing policies over workloads, loads and fleet sizes, with the same requests for every policy.

    Writes DIR/evaluation.csv (one row per policy, workload, load, fleet size and seed), DIR/evaluation.json (settings,
    capacities, 95 % bootstrap intervals of paired differences) and DIR/evaluation.png; nothing is written if anything
    is wrong. Load 1.0 is the rate at which the fleet is just saturated by the workload, estimated before the runs.
    """

    policies: str
    """Policies, with commas: names of heuristics (all: every one), default (the trained one that is shipped), a policy
    folder or training run, or module:object, an importable policy or what makes one; +spf after a name puts the
    router's queue in shortest-predicted order. Round robin is added if missing."""
    workloads: str
    """Workloads, with commas: five-task, synthetic sets (see `jaxroute data`), trace files, or decision logs of
    `jaxroute serve`. A generated one is drawn anew for each seed; of a file, each seed takes the requests from a random
    one on, the beginning after the end, and stretches them to the load's rate."""
    out: Path
    """Folder to write to."""
    loads: str = "0.7,1.0"
    """Rates, with commas, as multiples of the estimated capacity."""
    instances: str = "4"
    """Servers in the fleet; several fleet sizes with commas."""
    routers: str = "1"
    """Replicas of the router that share no state, each acting every --dt; several numbers with commas. Requests come to
    them by turns, and each knows only what it sent itself, and the servers' metrics."""
    seeds: int = 20
    """Seeds, and so runs, of each policy in each cell."""
    first_seed: int = 1_000_000
    """The first of them; training uses seeds below 1,000,000, so that no policy is evaluated on what it has seen."""
    requests: int | None = None
    """Requests of each run; by default the workload's own number, of a trace up to 2,000."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.evaluate import evaluate
        from jaxroute.evaluation import capacity_table, cell_result, cell_table, write_evaluation

        console = table_console()
        loads, sizes = self._loads(), self._sizes()
        self._check_seeds(console)
        check_folder(self.out)
        candidates = self._candidates(console)
        cells, capacities = self._cells(loads, sizes, console)
        console.print(capacity_table(capacities))
        with progress_bar(console, "evaluating") as report:
            rows = evaluate(cells, candidates, progress=report)
        with console.status("comparing"):
            results = [cell_result(own, candidates) for own in rows]
            flat = [row for own in rows for row in own]
            try:
                write_evaluation(self.out, flat, results, capacities, self.settings())
            except OSError as error:
                raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        for result in results:
            console.print(cell_table(result))
        console.print(f"written to {self.out}")

    def _candidates(self, console: Console) -> list[Candidate]:
        from jaxroute.candidates import candidates
        from jaxroute.metrics import REFERENCE_POLICY

        names = names_of(self.policies)
        found = candidates(names)
        if REFERENCE_POLICY not in {candidate.name for candidate in found}:
            console.print(f"[yellow]{REFERENCE_POLICY} is added: the others are compared with it[/]")
            found = candidates([REFERENCE_POLICY, *names])
        return found

    def _cells(
        self, loads: tuple[float, ...], sizes: tuple[int, ...], console: Console
    ) -> tuple[list[Cell], list[Capacity]]:
        """Everything that will be run, checked before any of it is."""
        from jaxroute.workload.prediction import predict

        cells: list[Cell] = []
        capacities: list[Capacity] = []
        names = list(dict.fromkeys(names_of(self.workloads)))
        if not names:
            raise InputError("--workloads: no workload given; see jaxroute data, or give a trace file")
        for workload in names:
            for instances in sizes:
                fleet = self.fleet_of(instances)
                draws = self._draws(workload, fleet)
                # What the options make impossible is said before the long work.
                predict(draws.table(self.first_seed, 1.0)[0], self.prediction, seed=self.first_seed)
                with console.status(f"estimating the capacity of {instances} instances for {workload}"):
                    capacity = self._capacity(draws, fleet)
                capacities.append(capacity)
                drawn = [self._cell(draws, fleet, load, load * capacity.requests_per_s, console) for load in loads]
                for routers in self._routers():
                    own = [dataclasses.replace(cell, fleet=self.fleet_of(instances, routers)) for cell in drawn]
                    self._warn_of_rates(own, console)
                    cells += own
        return cells, capacities

    def _draws(self, workload: str, fleet: Fleet) -> Draws:
        from jaxroute.workload.draws import Draws

        profile, limits = smallest_profile(fleet), self.limits(fleet)
        return Draws.create(workload, profile=profile, requests=self.requests, limits=limits, overlong=self.overlong)

    def _capacity(self, draws: Draws, fleet: Fleet) -> Capacity:
        from jaxroute.capacity import estimate_capacity, requests_needed
        from jaxroute.evaluation import Capacity

        table = draws.sample(requests_needed(fleet), CAPACITY_SEED)
        return Capacity(
            workload=draws.name,
            instances=len(fleet.profiles),
            requests_per_s=estimate_capacity(fleet, table),
            requests=len(table),
            seed=CAPACITY_SEED,
        )

    def _cell(self, draws: Draws, fleet: Fleet, load: float, rate: float, console: Console) -> Cell:
        from jaxroute.evaluate import Cell

        seeds = tuple(range(self.first_seed, self.first_seed + self.seeds))
        tables, reports = zip(*(draws.table(seed, rate) for seed in seeds), strict=True)
        for table in tables:
            fleet.check(table)
        place = f"{draws.name}, {len(fleet.profiles)} instances"
        # The loads differ in arrival times only, and the windows of a trace are of one that was cut as a whole.
        if load == self._loads()[0]:
            for text in _summed(reports[:1] if draws.trace is not None else reports):
                console.print(f"[yellow]{place}: {text}[/]")
        return Cell(draws.name, fleet, load, rate, seeds, tables, self.prediction)

    def _warn_of_rates(self, cells: list[Cell], console: Console) -> None:
        for cell in cells:
            place = f"{cell.workload}, {len(cell.fleet.profiles)} instances, load {cell.load:g}"
            if warning := rate_warning(place, cell.rate_per_s, cell.fleet.dt):
                console.print(f"[yellow]{warning}[/]")

    def _loads(self) -> tuple[float, ...]:
        loads = tuple(dict.fromkeys(_number(text, float, "--loads") for text in names_of(self.loads)))
        if not loads or not all(math.isfinite(load) and load > 0 for load in loads):
            raise InputError(f"--loads {self.loads}: give finite numbers above 0, such as 0.7,1.0")
        return loads

    def _sizes(self) -> tuple[int, ...]:
        sizes = tuple(dict.fromkeys(_number(text, int, "--instances") for text in names_of(self.instances)))
        if not sizes or min(sizes) < 1:
            raise InputError(f"--instances {self.instances}: give whole numbers of at least 1, such as 4 or 2,4,8")
        return sizes

    def _routers(self) -> tuple[int, ...]:
        routers = tuple(dict.fromkeys(_number(text, int, "--routers") for text in names_of(self.routers)))
        if not routers or min(routers) < 1:
            raise InputError(f"--routers {self.routers}: give whole numbers of at least 1, such as 1 or 1,2,4")
        return routers

    def _check_seeds(self, console: Console) -> None:
        from jaxroute.evaluate import FIRST_SEED

        if self.seeds < 1:
            raise InputError(f"--seeds is {self.seeds}, must be at least 1")
        if self.first_seed < 0 or self.first_seed + self.seeds > CAPACITY_SEED:
            raise InputError(f"--first-seed is {self.first_seed}, must be from 0 to {CAPACITY_SEED - self.seeds}")
        if self.first_seed < FIRST_SEED:
            console.print(f"[yellow]seeds below {FIRST_SEED:,} are for training: a trained policy may know them[/]")


def _number(text: str, kind: type[Number], option: str) -> Number:
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{option}: {text!r} is not {what}") from None


def _summed(reports: Iterable[tuple[LimitReport, ...]]) -> list[str]:
    """What the limits did to all tables together, a line for each limit that did something."""
    from jaxroute.workload.limits import LimitReport

    total: Counter[int] = Counter()
    clipped: Counter[int] = Counter()
    dropped: Counter[int] = Counter()
    for report in (each for table in reports for each in table):
        total[report.max_model_len] += report.total
        clipped[report.max_model_len] += report.clipped
        dropped[report.max_model_len] += report.dropped
    sums = [LimitReport(total[limit], clipped[limit], dropped[limit], limit) for limit in total]
    return [report.text for report in sums if report.changed]
