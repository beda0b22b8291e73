"""What a training run plays: groups of lanes, each with a fleet, a load and a bank of workloads of its own.

Axis letters: E lanes of a group, I instances, M workload tables of a lane, N requests of a table.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from jaxroute.cluster.params import make_config
from jaxroute.commands.options import rate_warning, smallest_profile
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.errors import InputError
from jaxroute.evaluate import FIRST_SEED
from jaxroute.make_env import env_params
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.simulate import Fleet
from jaxroute.train.capacities import Kind, capacities, stacked
from jaxroute.train.config import FleetsConfig, TrainConfig, WorkloadsConfig
from jaxroute.workload.draws import Draws
from jaxroute.workload.prediction import DEFAULT_EDGES, predict

Choice = TypeVar("Choice")

STREAM = 0x7363656E
"""Keeps the random numbers of the scenarios apart from those of other users of a seed."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What one lane plays, as facts for the log.

    Attributes:
      fleet: the servers.
      workload: its name.
      prediction: error model of the output lengths.
      load: rate over capacity; None where the configuration gives the rate.
      rate_per_s: mean requests per second.
      seeds: M, of the workload tables and their prediction errors.
    """

    fleet: Fleet
    workload: str
    prediction: str
    load: float | None
    rate_per_s: float
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Group:
    """Lanes that one compiled program runs side by side.

    Attributes:
      env: the environment of every lane; hashable. Its static sizes hold any fleet that the configuration can draw,
        whatever the seed.
      params: EnvParams, [E] leaves.
      scenarios: E, what is in the lanes.
    """

    env: ClusterRouting
    params: EnvParams
    scenarios: tuple[Scenario, ...]


def make_groups(config: TrainConfig, run: int = 0) -> tuple[Group, ...]:
    """The groups of one run, one for each entry of `config.fleets`; the same configuration gives the same.

    Args:
      config: the training run.
      run: which of the `config.seeds` runs side by side; the groups of all have the same environments and shapes, but
        other fleets and no table in common. Run 1 of seed 5 is run 0 of seed 6.

    Raises:
      InputError: a bad name or number, more tables than there are seeds, or a request that cannot run.
    """
    if not 0 <= run < config.seeds:
        raise InputError(f"run is {run}, must be below seeds = {config.seeds}")
    seeds = iter(_table_seeds(config, run))
    library = _Library(config.workloads)
    drawn = [
        [
            _Lane(fleet, workload, prediction, share, tuple(next(seeds) for _ in range(config.workloads.tables)))
            for fleet, workload, prediction, share in _draw_lanes(
                fleets, config.workloads, np.random.default_rng([config.seed + run, STREAM, number])
            )
        ]
        for number, fleets in enumerate(config.fleets)
    ]
    rates = iter(_rates([lane for lanes in drawn for lane in lanes], config.workloads, library))
    names = {name for fleets in config.fleets for name in fleets.workloads or config.workloads.names}
    size = library.size(_profiles_of(config.fleets[0])[0], sorted(names))
    groups = []
    for fleets, lanes in zip(config.fleets, drawn, strict=True):
        scenarios = tuple(
            Scenario(lane.fleet, lane.workload, lane.prediction, *next(rates), lane.seeds) for lane in lanes
        )
        params = stacked([_params(scenario, config, library, size) for scenario in scenarios])
        groups.append(Group(_environment(fleets, config, size), params, scenarios))
        _warn(groups[-1])
    return tuple(groups)


@dataclasses.dataclass(frozen=True)
class _Lane:
    """A scenario whose rate is not known yet; `load` lies between the least and the most."""

    fleet: Fleet
    workload: str
    prediction: str
    load: float
    seeds: tuple[int, ...]


class _Library:
    """The workloads to draw from, each read and cut to a fleet's limits once."""

    def __init__(self, config: WorkloadsConfig) -> None:
        self._config = config
        self._known: dict[tuple[object, ...], Draws] = {}

    def draws(self, name: str, fleet: Fleet) -> Draws:
        """The workload as the fleet can run it."""
        profile = smallest_profile(fleet)
        limits = (min(each.max_model_len for each in fleet.profiles), fleet.longest_request)
        key = (name, repr(profile), limits)
        if key not in self._known:
            requests = self._config.requests or None
            self._known[key] = Draws.create(name, profile=profile, requests=requests, limits=limits, overlong="clip")
        return self._known[key]

    def size(self, profile: StepProfile, names: Sequence[str]) -> int:
        """N of the longest of these workloads; clipping leaves no request out."""
        if self._config.requests:
            return self._config.requests
        fleet = Fleet((profile,), ("chunked",))
        return max(len(self.draws(name, fleet).table(0, 1.0)[0]) for name in names)


def _table_seeds(config: TrainConfig, run: int) -> list[int]:
    """Runs of consecutive seeds take consecutive blocks, so that runs side by side share no table."""
    count = config.workloads.tables * sum(fleets.lanes for fleets in config.fleets)
    if count * config.seeds > FIRST_SEED:
        raise InputError(
            f"{count * config.seeds:,} workload tables need as many seeds, and training has {FIRST_SEED:,}; "
            "lower seeds, workloads.tables or fleets.lanes"
        )
    return [((config.seed + run) * count + number) % FIRST_SEED for number in range(count)]


def _draw_lanes(
    fleets: FleetsConfig, workloads: WorkloadsConfig, rng: np.random.Generator
) -> list[tuple[Fleet, str, str, float]]:
    """Fleet, workload, prediction and load of E lanes. Choices are dealt, so that each gets its share of the lanes."""
    count = fleets.lanes
    profiles, schedulers = _deal(rng, fleets.profiles, count), _deal(rng, fleets.schedulers, count)
    kv_tokens = _deal(rng, fleets.kv_tokens, count)
    mixed = rng.permutation(count) < round(fleets.mixed * count)
    names, predictions = (
        _deal(rng, fleets.workloads or workloads.names, count),
        _deal(rng, workloads.predictions, count),
    )
    least, most = workloads.loads
    loads = least + (most - least) * (rng.permutation(count) + rng.random(count)) / count
    lanes = []
    for lane in range(count):
        servers = [(profiles[lane], schedulers[lane])] * fleets.instances
        if mixed[lane]:
            servers = _mixed_servers(fleets, rng)
        fleet = Fleet(
            profiles=tuple(_profile(name, kv_tokens[lane]) for name, _ in servers),
            schedulers=tuple(scheduler for _, scheduler in servers),
            dt=fleets.dt,
            routers=fleets.routers,
            router_order=fleets.router_order,
            ageing=fleets.ageing,
            spf_edges=fleets.spf_edges,
            scrape_s=workloads.scrape_s[0],
        )
        lanes.append((fleet, names[lane], predictions[lane], float(loads[lane])))
    return lanes


def _deal(rng: np.random.Generator, choices: Sequence[Choice], count: int) -> list[Choice]:
    """`count` of the choices in random order, each as often as the others but for one."""
    order = np.concatenate([rng.permutation(len(choices)) for _ in range(-(-count // len(choices)))])[:count]
    return [choices[index] for index in rng.permutation(order)]


def _mixed_servers(fleets: FleetsConfig, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Profile and scheduler of each instance; not all the same, where there is a choice."""
    can_differ = fleets.instances > 1 and len({*fleets.profiles}) * len({*fleets.schedulers}) > 1
    while True:
        servers = [
            (
                fleets.profiles[rng.integers(len(fleets.profiles))],
                fleets.schedulers[rng.integers(len(fleets.schedulers))],
            )
            for _ in range(fleets.instances)
        ]
        if not can_differ or len(set(servers)) > 1:
            return servers


def _profile(name: str, kv_tokens: int) -> StepProfile:
    profile = load_profile(name)
    return profile.with_kv_tokens(kv_tokens) if kv_tokens else profile


def _profiles_of(fleets: FleetsConfig) -> list[StepProfile]:
    """Every server that the group can draw."""
    return [_profile(name, tokens) for name in fleets.profiles for tokens in fleets.kv_tokens]


def _rates(lanes: Sequence[_Lane], config: WorkloadsConfig, library: _Library) -> list[tuple[float | None, float]]:
    """Load and requests per second of each lane; the servers of all are measured together."""
    if config.rate > 0:
        return [(None, config.rate)] * len(lanes)
    kinds: dict[tuple[object, ...], Kind] = {}
    fleets = []
    for lane in lanes:
        draws = library.draws(lane.workload, lane.fleet)
        own = []
        for profile, scheduler in zip(lane.fleet.profiles, lane.fleet.schedulers, strict=True):
            own.append((repr(profile), scheduler, id(draws)))
            kinds.setdefault(own[-1], Kind(profile, scheduler, draws))
        fleets.append(own)
    measured = dict(zip(kinds, capacities(list(kinds.values())), strict=True))
    return [
        (lane.load, lane.load * float(sum(measured[server] for server in own)))
        for lane, own in zip(lanes, fleets, strict=True)
    ]


def _params(scenario: Scenario, config: TrainConfig, library: _Library, size: int) -> EnvParams:
    draws = library.draws(scenario.workload, scenario.fleet)
    tables = [draws.table(seed, scenario.rate_per_s)[0] for seed in scenario.seeds]
    for table in tables:
        scenario.fleet.check(table)
    return env_params(
        scenario.fleet,
        tables,
        [predict(table, scenario.prediction, seed=seed) for table, seed in zip(tables, scenario.seeds, strict=True)],
        size=size,
        scrape_s=config.workloads.scrape_s,
        penalty_weight=0.0 if config.reward.guidance == "none" else 1.0,
    )


def _environment(fleets: FleetsConfig, config: TrainConfig, size: int) -> ClusterRouting:
    sizes = make_config(
        _profiles_of(fleets),
        queue_capacity=size,
        dt=fleets.dt,
        router_order=fleets.router_order,
        routers=fleets.routers,
    )
    return ClusterRouting(
        dataclasses.replace(sizes, buckets=len(DEFAULT_EDGES)),
        fleets.instances,
        config.reward.kind,
        config.network.observation,
    )


def _warn(group: Group) -> None:
    fastest = max(group.scenarios, key=lambda scenario: scenario.rate_per_s)
    if warning := rate_warning(fastest.workload, fastest.rate_per_s, fastest.fleet.dt):
        logger.warning("%d instances: %s", group.env.instances, warning)
