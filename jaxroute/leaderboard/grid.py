"""What a leaderboard is measured on: blocks of a workload, a fleet and a scheduler, each at several loads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

from jaxroute.evaluate import Cell, Row
from jaxroute.simulate import Fleet
from jaxroute.slo import Slo
from jaxroute.workload.draws import Draws
from jaxroute.workload.table import RequestTable


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all blocks have in common.

    Attributes:
      loads: multiples of each block's capacity, ascending.
      seeds: common to all policies.
      prediction: what the router is told of output lengths, see `predict`.
      slo: the objective.
      capacity_levels: loads among which the SLO capacity is searched, ascending; one less than a power of two.
      search_rounds: of the clairvoyant search; 0: none.
      small_requests: of its cases.
      small_cases: seeds of it, the first of `seeds`.
    """

    loads: tuple[float, ...]
    seeds: tuple[int, ...]
    prediction: str
    slo: Slo
    capacity_levels: tuple[float, ...]
    search_rounds: int
    small_requests: int = 24
    small_cases: int = 3


@dataclasses.dataclass(frozen=True)
class Block:
    """One workload on one fleet under one scheduler.

    Attributes:
      workload: as it was asked for.
      fleet_name: likewise.
      scheduler: of all servers.
      fleet: the servers, with a dt that dispatches the highest load.
      draws: of the workload.
      capacity: requests per second that load 1.0 means.
    """

    workload: str
    fleet_name: str
    scheduler: str
    fleet: Fleet
    draws: Draws
    capacity: float

    @property
    def label(self) -> str:
        """For headings."""
        return f"{self.workload_label}, {self.fleet_name}, {self.scheduler}"

    @property
    def workload_label(self) -> str:
        """The workload's name, of a file without its folder."""
        return Path(self.workload).name

    def tables(self, load: float, seeds: tuple[int, ...]) -> tuple[RequestTable, ...]:
        """The requests of each seed at a load."""
        return tuple(self.draws.table(seed, load * self.capacity)[0] for seed in seeds)

    def cell(self, load: float, settings: Settings) -> Cell:
        """All seeds at one load."""
        tables = self.tables(load, settings.seeds)
        rate = load * self.capacity
        return Cell(self.workload_label, self.fleet, load, rate, settings.seeds, tables, settings.prediction)

    @functools.cached_property
    def key(self) -> dict[str, object]:
        """All that its results depend on but seeds, loads and policies."""
        return {
            "workload": _workload_key(self.draws),
            "fleet": fleet_key(self.fleet),
            "capacity": self.capacity,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry(Row):
    """One run of one policy: a row of `runs.csv`.

    Attributes:
      fleet: name of the fleet.
      goodput: share of the requests within the objective.
    """

    fleet: str
    goodput: float


@dataclasses.dataclass(frozen=True)
class SloCapacity:
    """The highest load at which a policy serves `ATTAINMENT` of a seed's requests within the objective.

    Attributes:
      workload, fleet, scheduler, policy, seed: the run.
      load: of the levels searched; 0 where none will do.
      rate_per_s: the load in requests per second.
    """

    workload: str
    fleet: str
    scheduler: str
    policy: str
    seed: int
    load: float
    rate_per_s: float


@dataclasses.dataclass(frozen=True)
class Bounded:
    """Lower bounds on the mean E2E latency of one seed, see `LowerBound`."""

    workload: str
    fleet: str
    scheduler: str
    load: float
    seed: int
    alone_s: float
    capacity_s: float
    capacity_and_tail_s: float

    @property
    def e2e_mean_s(self) -> float:
        """The greatest of them."""
        return max(self.alone_s, self.capacity_s, self.capacity_and_tail_s)


@dataclasses.dataclass(frozen=True)
class SmallCase:
    """A case small enough to search.

    Attributes:
      workload, fleet, scheduler, seed: the case.
      requests: in it.
      found_s: mean E2E latency of the best schedule found.
      bound_s: lower bound on it.
      policies: mean E2E latency by policy.
      simulated: schedules that were tried.
    """

    workload: str
    fleet: str
    scheduler: str
    seed: int
    requests: int
    found_s: float
    bound_s: float
    policies: dict[str, float]
    simulated: int


def fleet_key(fleet: Fleet) -> dict[str, object]:
    """All that a fleet is."""
    own = {field.name: getattr(fleet, field.name) for field in dataclasses.fields(fleet) if field.name != "profiles"}
    return {**own, "profiles": [dataclasses.asdict(profile) for profile in fleet.profiles]}


def _workload_key(draws: Draws) -> dict[str, object]:
    own: dict[str, object] = {"requests": draws.requests, "limits": draws.limits, "overlong": draws.overlong}
    if draws.trace is None:
        return {**own, "name": draws.name, "profile": dataclasses.asdict(draws.profile)}
    trace = draws.trace
    digest = hashlib.sha256()
    for column in (trace.arrival_s, trace.prompt_tokens, trace.output_tokens, trace.task):
        digest.update(column.tobytes())
    return {**own, "trace": digest.hexdigest()}
