"""Options of the commands that measure live servers, and how the servers and the requests come from them."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from jaxroute.commands.console import progress_bar
from jaxroute.commands.options import FleetOptions, names_of, rate_warning
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.live.cluster import LiveCluster
    from jaxroute.live.fidelity import Case
    from jaxroute.live.fidelity_report import Servers
    from jaxroute.profiles import StepProfile
    from jaxroute.simulate import Fleet
    from jaxroute.testbed import TestbedConfig
    from jaxroute.workload.draws import Draws
    from jaxroute.workload.table import RequestTable

CAPACITY_SEED = 2**31 - 1
"""Seed of the requests that the capacity is estimated by, of no run."""


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Requests at one speed.

    Attributes:
      workload: as it was asked for.
      load: multiple of the fleet's capacity; None where a rate was given.
      rate_per_s: mean requests per second.
      draws: where the requests come from.
    """

    workload: str
    load: float | None
    rate_per_s: float
    draws: Draws

    def table(self, seed: int) -> RequestTable:
        """The requests of a seed."""
        return self.draws.table(seed, self.rate_per_s)[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveOptions(FleetOptions):
    """Options of commands that measure live servers."""

    workload: str = "chat"
    """Workloads, with commas: five-task, chat, a synthetic set (see `jaxroute data`), or a trace file."""
    out: Path
    """Folder to write to."""
    profile: str = "v100-32gb-llama2-7b"
    """Profile that the testbed's engines emulate, by name (see `jaxroute profiles`) or JSON file; with --url, that of
    those servers (see `jaxroute profile`)."""
    url: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="URL")] = ()
    """Address of a vLLM server that runs and that nobody else uses, http://HOST:PORT; many times for many. Without any,
    a testbed is started: real vLLM engines on this machine, at the profile's speed (see `make setup-vllm`)."""
    instances: int = 4
    """I, engines of the testbed."""
    slow_down: float = 1.0
    """Factor on the profile's step times, which gives a small machine time for the engines' own work."""
    load: str = "0.7"
    """Rates, with commas, as multiples of the estimated capacity of the fleet."""
    rate: str = ""
    """Rates, with commas, requests per second; instead of --load."""
    requests: int = 400
    """Requests of each run; of a trace, a window."""
    seed: int = 1_000_000
    """Seed of the requests; the prompts' token ids are others in every run."""
    overlong: Literal["error", "clip", "drop"] = "clip"
    """What to do with requests that a server cannot hold: stop, cut the prompt, or leave them out."""

    def check(self) -> None:
        """Checks what can be checked before anything starts.

        Raises:
          InputError: a bad option.
        """
        for module in ("aiohttp", "uvloop", "prometheus_client", "yaml"):
            if importlib.util.find_spec(module) is None:
                raise InputError(f"live servers need {module}: pip install 'jaxroute[serve]'")
        self._speeds()
        if self.url and self.slow_down != 1:
            raise InputError("--slow-down: is for the testbed; servers at --url have their own speed")
        if self.seed < 0 or self.seed >= CAPACITY_SEED:
            raise InputError(f"--seed is {self.seed}, must be from 0 to {CAPACITY_SEED - 1}")
        for url in self.url:
            if not url.startswith(("http://", "https://")) or url.rstrip("/").endswith("/v1"):
                raise InputError(f"--url {url}: give the server's root, such as http://127.0.0.1:8000, without /v1")

    @property
    def urls(self) -> tuple[str, ...]:
        """Of servers that run, without a slash at the end."""
        return tuple(url.rstrip("/") for url in self.url)

    def servers(self, scheduler: str) -> StepProfile:
        """How fast the servers are: what the testbed will emulate, or the profile as it was given.

        Raises:
          InputError: a bad option.
        """
        from jaxroute.testbed.config import emulated_profile

        [profile] = dataclasses.replace(self, scheduler=scheduler).fleet_of(1).profiles
        return profile if self.url else emulated_profile(self._testbed(profile, scheduler))

    def fleet(self, profile: StepProfile, scheduler: str) -> Fleet:
        """The simulated servers."""
        count = len(self.url) or self.instances
        plain = dataclasses.replace(self, scheduler=scheduler, kv_tokens=None).fleet_of(count)
        return dataclasses.replace(plain, profiles=(profile,) * count)

    @contextmanager
    def running(self, scheduler: str, console: Console) -> Iterator[LiveCluster]:
        """The servers: those given, or a testbed that ends with the block.

        Raises:
          InputError: they cannot be reached, or the testbed cannot be started.
        """
        from jaxroute.live.cluster import LiveCluster
        from jaxroute.live.fidelity import check_servers
        from jaxroute.testbed import Testbed

        if self.url:
            profile = self.servers(scheduler)
            yield LiveCluster(self.urls, check_servers(self.urls, profile), profile)
            return
        [profile] = dataclasses.replace(self, scheduler=scheduler).fleet_of(1).profiles
        testbed = Testbed(self._testbed(profile, scheduler))
        with console.status(f"starting {self.instances} vLLM engines, {scheduler}"):
            testbed.__enter__()
        try:
            yield LiveCluster.of(testbed)
        finally:
            testbed.__exit__(None, None, None)

    def measured(self, cluster: LiveCluster, cases: Sequence[Case], console: Console) -> Servers:
        """The servers with `frontend_ms` as it is, measured when they are idle and at moderate load.

        Raises:
          InputError: a server fails, or has something to do.
        """
        from jaxroute.live.fidelity import measure_idle, measure_loaded
        from jaxroute.live.fidelity_report import Servers

        calmest = min(cases, key=lambda case: case.load or case.rate_per_s)
        with console.status("measuring the front end"):
            idle = measure_idle(cluster, calmest.table.prompt_tokens)
            loaded = measure_loaded(cluster, calmest, self.seed)
        console.print(
            f"{calmest.scheduler}: frontend_ms {loaded:.2f} at moderate load, {idle.frontend_ms:.2f} when idle; "
            f"a decode step takes {idle.step_excess_ms:+.3f} ms beyond its profile"
        )
        profile = dataclasses.replace(cluster.profile, frontend_ms=loaded)
        return Servers(calmest.scheduler, profile, idle)

    def cases(self, scheduler: str, seeds: Sequence[int], console: Console) -> list[list[Case]]:
        """All that will be run on the servers of a scheduler, for each traffic one case for each seed.

        Raises:
          InputError: requests that the servers cannot hold.
        """
        from jaxroute.live.fidelity import Case
        from jaxroute.workload.prediction import predict

        fleet = self.fleet(self.servers(scheduler), scheduler)
        made: list[list[Case]] = []
        for each in self.traffic(fleet, console):
            made.append([])
            for seed in seeds:
                table = each.table(seed)
                fleet.check(table)
                prediction = predict(table, self.prediction, seed=seed)
                made[-1].append(Case(scheduler, each.workload, each.load, each.rate_per_s, fleet, table, prediction))
        return made

    def traffic(self, fleet: Fleet, console: Console) -> list[Traffic]:
        """Every workload at every speed, for this fleet.

        Raises:
          InputError: a workload that cannot be read or that the servers cannot hold.
        """
        made = []
        loads, rates = self._speeds()
        for name in dict.fromkeys(names_of(self.workload)):
            draws = self._draws(name, fleet)
            if loads:
                with console.status(f"estimating the capacity of {len(fleet.profiles)} instances for {name}"):
                    capacity = self._capacity(draws, fleet)
                speeds: list[tuple[float | None, float]] = [(load, load * capacity) for load in loads]
            else:
                speeds = [(None, rate) for rate in rates]
            made += [Traffic(name, load, rate, draws) for load, rate in speeds]
        if not made:
            raise InputError("--workload: no workload given; see jaxroute data, or give a trace file")
        for each in made:
            if warning := rate_warning(each.workload, each.rate_per_s, self.dt):
                console.print(f"[yellow]{warning}[/]")
        return made

    def _testbed(self, profile: StepProfile, scheduler: str) -> TestbedConfig:
        from jaxroute.testbed import TestbedConfig

        return TestbedConfig(
            profile=profile,
            instances=self.instances,
            scheduler=scheduler,
            slow_down=self.slow_down,
            folder=self.out / f"testbed-{scheduler}",
        )

    def _draws(self, name: str, fleet: Fleet) -> Draws:
        from jaxroute.workload.draws import Draws

        limits, profile = self.limits(fleet), fleet.profiles[0]
        return Draws.create(name, profile=profile, requests=self.requests, limits=limits, overlong=self.overlong)

    def _capacity(self, draws: Draws, fleet: Fleet) -> float:
        from jaxroute.capacity import estimate_capacity, requests_needed

        return estimate_capacity(fleet, draws.sample(requests_needed(fleet), CAPACITY_SEED))

    def _speeds(self) -> tuple[list[float], list[float]]:
        """Loads or rates."""
        rates = _positive(self.rate, "--rate")
        loads = [] if rates else _positive(self.load, "--load")
        if not rates and not loads:
            raise InputError("--load: give at least one, such as 0.7, or --rate")
        return loads, rates


@contextmanager
def run_bars(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar for the run of the moment, whose name is printed; the yielded function starts one."""
    with progress_bar(console, "live") as report:

        def start(what: str) -> Callable[[int, int], None]:
            console.print(f"[dim]{what}[/]")
            return report

        yield start


def _positive(text: str, option: str) -> list[float]:
    try:
        values = [float(each) for each in names_of(text)]
    except ValueError:
        values = [math.nan]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise InputError(f"{option} {text}: give finite numbers above 0, with commas")
    return list(dict.fromkeys(values))
