"""`jaxroute leaderboard`."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.commands.options import FleetOptions, check_folder, names_of, smallest_profile
from jaxroute.commands.run_options import INTERRUPTED
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.leaderboard.grid import Block, Settings
    from jaxroute.leaderboard.standings import Board
    from jaxroute.leaderboard.store import Store
    from jaxroute.simulate import Fleet
    from jaxroute.workload.draws import Draws

ROUTER_INTERVALS = (0.02, 0.01, 0.005, 0.0025, 0.00125)
"""Choices of dt, seconds: the longest is taken that leaves the router `BUSIEST` of what it can dispatch."""

BUSIEST = 0.5

MOST_SEED = 2**31 - 1
MOST_BISECTIONS = 8


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What is measured where an option does not say it."""

    workloads: str
    loads: str
    fleets: str
    policies: str
    seeds: int
    requests: int | None
    max_num_seqs: int | None
    bisections: int
    search_rounds: int


FULL = Defaults(
    workloads="five-task,chat,lh-hl-random,all-random",
    loads="0.5,0.7,0.9,1.1,1.3,1.5",
    fleets="4xa100-80gb-llama31-8b,2xa100-80gb-llama31-8b+2xh100-80gb-llama31-8b",
    policies="all,fewest-outstanding-tokens+spf,least-kv+spf,gated-central-queue+spf,default,default+fcfs",
    seeds=20,
    requests=None,
    max_num_seqs=None,
    bisections=6,
    search_rounds=60,
)
QUICK = Defaults(
    workloads="five-task,chat",
    loads="0.7,1.3",
    fleets="2xa100-80gb-llama31-8b,1xa100-80gb-llama31-8b+1xh100-80gb-llama31-8b",
    policies=FULL.policies,
    seeds=6,
    requests=200,
    max_num_seqs=16,
    bisections=4,
    search_rounds=20,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """Rank routing policies over workloads, fleets, schedulers and loads, beside a bound that no router can beat.

    Writes leaderboard.md, leaderboard.html (one page that needs no network), CSV files and pictures to DIR. What has
    been measured is kept in DIR/cache: interrupted, the same command goes on where it stopped, and with more policies,
    loads or workloads it runs only those. Without options it takes hours; --quick takes minutes.
    """

    out: Path
    """Folder to write to."""
    quick: bool = False
    """Few, small cells: 2 servers of 16 sequences, 200 requests, 6 seeds, loads 0.7 and 1.3, two workloads."""
    workloads: str | None = None
    """Workloads, with commas: generated ones (see `jaxroute data`), trace files, or decision logs. By default
    five-task, chat, lh-hl-random and all-random."""
    loads: str | None = None
    """Rates, with commas, as multiples of the estimated capacity; by default from 0.5 to 1.5."""
    fleets: str | None = None
    """Fleets, with commas: 4xPROFILE, or 2xPROFILE+2xPROFILE for a mixed one; see `jaxroute profiles`."""
    schedulers: str = "prefill-first,chunked"
    """Schedulers, with commas: prefill-first, chunked, whole-prompt."""
    policies: str | None = None
    """Policies, with commas: names of heuristics (all: every one), default, default+fcfs (the same by arrival), a
    policy folder or training run, or module:object; +spf after a name puts the router's queue in shortest-predicted
    order."""
    enter: str = ""
    """Policies that enter besides, with commas, such as my_router:MyPolicy."""
    seeds: int | None = None
    """Seeds, and so runs, of each policy in each cell; 20, with --quick 6."""
    first_seed: int = 1_000_000
    """The first of them; training uses seeds below 1,000,000."""
    requests: int | None = None
    """Requests of each run; by default the workload's own number, of a trace up to 2,000; with --quick 200."""
    slo_ttft: float = 2.0
    """Objective: longest time to the first token, seconds."""
    slo_tbt: float = 0.1
    """Objective: longest mean time between the tokens of a request, seconds."""
    bisections: int | None = None
    """Rounds of the search for the highest load within the objective, each as long as a cell; 6 tell loads 0.025
    apart, 0 leaves it out."""
    search_rounds: int | None = None
    """Rounds of the clairvoyant search of the small cases, 64 schedules each; 0 leaves it out."""
    prediction: str = "0.8"
    """What the router is told of output lengths, see `jaxroute evaluate --help`."""
    overlong: Literal["error", "clip", "drop"] = "clip"
    """What to do with requests that a server cannot hold: stop, cut the prompt, or leave them out."""
    kv_tokens: int | None = None
    """KV cache size of every server, tokens; by default the profile's."""
    max_num_seqs: int | None = None
    """Most sequences that a server runs at once; by default the profile's, with --quick 16."""
    ageing: float = 5.0
    """Predicted tokens that a second of waiting is worth under +spf."""
    spf_edges: str = ""
    """Predicted tokens to which those of a request are rounded down under +spf, such as 256 for two classes."""
    scrape_s: float = 0.1
    """Time between two scrapes of the servers' metrics, seconds."""
    dt: Annotated[float | None, tyro.conf.arg(name="dt")] = None
    """Router interval, seconds; by default 0.02, or less where that many requests need it."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.leaderboard.entrants import entrants
        from jaxroute.leaderboard.measure import measure
        from jaxroute.leaderboard.standings import board_of
        from jaxroute.leaderboard.store import Store
        from jaxroute.leaderboard.write import write_leaderboard

        console = table_console()
        check_folder(self.out)
        candidates = entrants(self._policies())
        settings = self._settings()
        store = Store(self.out / "cache")
        try:
            blocks = list(self._blocks(settings, store, console))
            with _shown_progress(console) as report:
                measured = measure(blocks, candidates, settings, store, report)
            with console.status("writing"):
                board = board_of(measured, candidates)
                names = write_leaderboard(self.out, board, settings, self._notes(blocks, settings))
        except KeyboardInterrupt:
            console.print("interrupted; what has been measured is kept: the same command goes on", soft_wrap=True)
            sys.exit(INTERRUPTED)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        console.print(_overview(board))
        console.print(f"written to {self.out}: {', '.join(names)}")

    @property
    def _defaults(self) -> Defaults:
        return QUICK if self.quick else FULL

    def _policies(self) -> list[str]:
        return [*names_of(self.policies or self._defaults.policies), *names_of(self.enter)]

    def _settings(self) -> Settings:
        from jaxroute.leaderboard.grid import Settings
        from jaxroute.leaderboard.slo_capacity import levels
        from jaxroute.slo import Slo

        default = self._defaults
        seeds = default.seeds if self.seeds is None else self.seeds
        if seeds < 1:
            raise InputError(f"--seeds is {seeds}, must be at least 1")
        if not 0 <= self.first_seed <= MOST_SEED - seeds:
            raise InputError(f"--first-seed is {self.first_seed}, must be from 0 to {MOST_SEED - seeds}")
        rounds = default.bisections if self.bisections is None else self.bisections
        if not 0 <= rounds <= MOST_BISECTIONS:
            raise InputError(f"--bisections is {rounds}, must be from 0 to {MOST_BISECTIONS}")
        search_rounds = default.search_rounds if self.search_rounds is None else self.search_rounds
        if search_rounds < 0:
            raise InputError(f"--search-rounds is {search_rounds}, must be at least 0")
        return Settings(
            loads=_loads(self.loads or default.loads),
            seeds=tuple(range(self.first_seed, self.first_seed + seeds)),
            prediction=self.prediction,
            slo=Slo(self.slo_ttft, self.slo_tbt),
            capacity_levels=levels(rounds) if rounds else (),
            search_rounds=search_rounds,
        )

    def _blocks(self, settings: Settings, store: Store, console: Console) -> Iterator[Block]:
        """All blocks, whatever is wrong with them said before any is measured."""
        fleets, schedulers = names_of(self.fleets or self._defaults.fleets), names_of(self.schedulers)
        workloads = names_of(self.workloads or self._defaults.workloads)
        for option, names in (("--fleets", fleets), ("--schedulers", schedulers), ("--workloads", workloads)):
            if not names:
                raise InputError(f"{option}: none given")
            labels = [Path(name).name for name in names]
            if len(set(labels)) < len(labels):
                raise InputError(
                    f"{option}: two are called alike ({', '.join(labels)}); give each once, by its own name"
                )
        places = [(one, two, three) for one in workloads for two in fleets for three in schedulers]
        drawn = [self._drawn(*place, console) for place in places]
        for fleet_and_draws, place in zip(drawn, places, strict=True):
            yield self._block(place, fleet_and_draws, settings, store, console)

    def _drawn(self, workload: str, fleet_name: str, scheduler: str, console: Console) -> tuple[Fleet, Draws]:
        """The fleet and the workload of a block, checked."""
        from jaxroute.workload.draws import Draws
        from jaxroute.workload.prediction import predict

        options = self._fleet_options(fleet_name, scheduler)
        fleet = options.fleet_of(len(names_of(options.profile)))
        requests = self._defaults.requests if self.requests is None else self.requests
        limits, profile = options.limits(fleet), smallest_profile(fleet)
        draws = Draws.create(workload, profile=profile, requests=requests, limits=limits, overlong=self.overlong)
        table, reports = draws.table(self.first_seed, 1.0)
        fleet.check(table)
        # What the options make impossible is said before the long work.
        predict(table, self.prediction, seed=self.first_seed)
        for text in [report.text for report in reports if report.changed]:
            label = f"{Path(workload).name}, {fleet_name}, {scheduler}"
            console.print(f"[yellow]{label}: {text}[/]", soft_wrap=True)
        return fleet, draws

    def _block(
        self,
        place: tuple[str, str, str],
        drawn: tuple[Fleet, Draws],
        settings: Settings,
        store: Store,
        console: Console,
    ) -> Block:
        """The block, with its capacity and a router interval that is short enough."""
        from jaxroute.capacity import estimate_capacity, requests_needed
        from jaxroute.leaderboard.grid import Block
        from jaxroute.leaderboard.small_case import CAPACITY_SEED

        fleet, draws = drawn
        block = Block(*place, fleet, draws, 1.0)

        def compute() -> object:
            with console.status(f"estimating the capacity of {block.label}"):
                return estimate_capacity(fleet, draws.sample(requests_needed(fleet), CAPACITY_SEED))

        capacity = float(str(store.result({"what": "capacity", **block.key}, compute)))
        top = max(*settings.loads, *settings.capacity_levels[-1:]) * capacity
        fleet = dataclasses.replace(fleet, dt=self.dt or router_interval(top))
        return Block(*place, fleet, draws, capacity)

    def _fleet_options(self, fleet_name: str, scheduler: str) -> FleetOptions:
        from jaxroute.leaderboard.fleet_name import profiles_of

        return FleetOptions(
            profile=",".join(profiles_of(fleet_name)),
            scheduler=scheduler,
            kv_tokens=self.kv_tokens,
            max_num_seqs=self._defaults.max_num_seqs if self.max_num_seqs is None else self.max_num_seqs,
            dt=self.dt or ROUTER_INTERVALS[0],
            prediction=self.prediction,
            overlong=self.overlong,
            ageing=self.ageing,
            spf_edges=self.spf_edges,
            scrape_s=self.scrape_s,
        )

    def _notes(self, blocks: list[Block], settings: Settings) -> list[str]:
        """How it was measured."""
        from jaxroute.leaderboard.store import made_by

        capacities = "; ".join(
            f"{each.label}: {each.capacity:.3g}/s (dt {1e3 * each.fleet.dt:g} ms)" for each in blocks
        )
        versions = ", ".join(f"{name} {version}" for name, version in made_by().items() if name in ("jax", "numpy"))
        told = {
            "oracle": "told the true length bucket",
            "none": "told nothing of output lengths",
        }.get(self.prediction, f"told output lengths as --prediction {self.prediction} has it")
        return [
            f"Simulated, not measured on servers. Cells: {len(blocks)} of workload, fleet and scheduler, times "
            f"{len(settings.loads)} of load; seeds of each: {len(settings.seeds)}; the router is {told}. Made by "
            f"{self._command} with {versions}, sources {str(made_by()['sources'])[:12]}.",
            f"Load 1.0 is the rate at which a fleet is just saturated: {capacities}.",
        ]

    @property
    def _command(self) -> str:
        """The command that makes it, but for the folder."""
        parts = ["jaxroute leaderboard"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "out" and value != field.default:
                option = "--" + field.name.replace("_", "-")
                parts.append(option if value is True else f"{option} {value}")
        return " ".join(parts)


def router_interval(rate: float) -> float:
    """The router interval, seconds, with which a router sends on so many requests per second with ease."""
    return next((dt for dt in ROUTER_INTERVALS if rate * dt <= BUSIEST), ROUTER_INTERVALS[-1])


def _loads(text: str) -> tuple[float, ...]:
    try:
        loads = tuple(sorted({float(part) for part in names_of(text)}))
    except ValueError:
        loads = ()
    if not loads or not all(math.isfinite(load) and load > 0 for load in loads):
        raise InputError(f"--loads {text}: give finite numbers above 0, such as 0.7,1.0")
    return loads


@contextlib.contextmanager
def _shown_progress(console: Console) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with what is under way; where nobody looks on, a line for each part."""
    columns = (
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)
            if what and not console.is_terminal:
                console.print(f"{done + 1} of {total}: {what}", soft_wrap=True)

        yield report


def _overview(board: Board) -> Table:
    """The table of all cells."""
    from jaxroute.leaderboard.tables import overall_table

    source = overall_table(board)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=source.title, title_justify="left")
    table.add_column("policy", overflow="fold")
    for heading in source.columns[1:]:
        table.add_column(heading, justify="right")
    for name, fields in source.rows:
        table.add_row(name, *(f"[bold]{field.text}[/]" if field.mark else field.text for field in fields))
    return table
