"""The simulator beside real servers: decisions are simulated, replayed live at their times, and both runs compared."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import uvloop
from scipy.stats import trim_mean

from jaxroute.candidates import Candidate, by_program, candidates
from jaxroute.live.agreement import Difference, Preemptions, differences, noise_floor, preemptions_at
from jaxroute.live.client import LiveError, open_session
from jaxroute.live.cluster import HeldSteps, LiveCluster
from jaxroute.live.frontend import FrontEnd, measure_frontend
from jaxroute.live.replay import Chooser, Given, LiveRun, Load, Progress, make_load, replay
from jaxroute.live.server import Counters, read_counters, served_model
from jaxroute.profiles import StepProfile
from jaxroute.results import RunResult
from jaxroute.simulate import Fleet, simulate
from jaxroute.testbed.trace import MOST_OVERRUN_SHARE
from jaxroute.workload.prediction import Prediction, predict
from jaxroute.workload.table import RequestTable

LOADED_REQUESTS, LOADED_SHARE = 300, 0.7
"""Requests by which the front end of loaded servers is measured, and their rate as a share of the capacity."""

SETTLE_S = 0.7
"""From the last answer of a run until the servers' counters and traces have all of it."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Requests for one fleet.

    Attributes:
      scheduler, workload: names.
      load: multiple of the fleet's capacity; None where a rate was given.
      rate_per_s: mean requests per second.
      fleet: the simulated servers, `frontend_ms` included.
      table: the requests.
      prediction: what the router is told of their output lengths.
    """

    scheduler: str
    workload: str
    load: float | None
    rate_per_s: float
    fleet: Fleet
    table: RequestTable
    prediction: Prediction

    @property
    def name(self) -> str:
        """For folders and tables."""
        speed = f"rate-{self.rate_per_s:.3g}" if self.load is None else f"load-{self.load:g}"
        return f"{self.scheduler}-{self.table.name.rsplit('/', 1)[-1]}-{speed}"

    def on(self, profile: StepProfile) -> Case:
        """The same requests for servers of another profile."""
        fleet = dataclasses.replace(self.fleet, profiles=(profile,) * len(self.fleet.profiles))
        return dataclasses.replace(self, fleet=fleet)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One live run of given decisions.

    Attributes:
      run: the requests' records and the client's lateness.
      preemptions: [I] at each server.
      prefix_hits: prompt tokens that a server did not have to compute; the simulator computes all.
      held: how well the engine steps kept to the profile; None where nobody knows.
    """

    run: LiveRun
    preemptions: tuple[int, ...]
    prefix_hits: int
    held: HeldSteps | None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the run is not valid; empty where it is."""
        found = []
        if self.held is not None and self.held.overrun_share >= MOST_OVERRUN_SHARE:
            found.append(f"{100 * self.held.overrun_share:.1f} % of the steps overran")
        if self.run.is_late:
            found.append(f"the client was late by {1e3 * np.percentile(self.run.late_s, 99):.1f} ms (p99)")
        if self.prefix_hits:
            found.append(f"{self.prefix_hits} tokens came from a prefix cache")
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One policy of one case: the simulated run, its live repeats, and how far apart they are.

    Attributes:
      case: the requests and the fleet.
      simulated: the run whose decisions were replayed.
      measured: the repeats.
      differences: of each repeat, by quantity.
      preemptions: of each repeat.
      noise_percent: largest difference of any two repeats, by quantity and statistic; empty with one repeat.
      noise_preemptions_percent: likewise; None with one repeat.
    """

    case: Case
    simulated: RunResult
    measured: tuple[Measured, ...]
    differences: tuple[Mapping[str, Difference], ...]
    preemptions: tuple[Preemptions, ...]
    noise_percent: Mapping[str, Mapping[str, float]]
    noise_preemptions_percent: float | None


def measure_idle(cluster: LiveCluster, prompt_tokens: np.ndarray) -> FrontEnd:
    """`frontend_ms` of a cluster that nobody else uses.

    Raises:
      LiveError: a server fails, or has something to do.
    """

    async def measure() -> FrontEnd:
        async with open_session() as session:
            for url in cluster.urls:
                if busy := (await read_counters(session, url)).in_flight:
                    raise LiveError(f"{url}: has {busy} requests of somebody else; measure on idle servers")
            return await measure_frontend(session, cluster.urls, cluster.model, cluster.profile, prompt_tokens)

    return uvloop.run(measure())


def measure_loaded(cluster: LiveCluster, case: Case, seed: int) -> float:
    """`frontend_ms` of servers that have something to do, from requests of their own.

    An idle server's is too small: of all the tokens of a step, those of the request that came last go out last.
    Requests of the case's sizes take turns at moderate load, and what their TTFT is longer than simulated is the front
    end's: the mean, without the tenth at either end.

    Args:
      cluster: the servers.
      case: whose sizes and, where its load is known, whose capacity.
      seed: of sizes and arrivals.

    Raises:
      LiveError: a request failed.
    """
    rng = np.random.default_rng([seed, len(case.table)])
    rows = rng.choice(len(case.table), LOADED_REQUESTS)
    rate = case.rate_per_s * LOADED_SHARE / (case.load or 1.0)
    table = RequestTable.create(
        np.cumsum(rng.exponential(1 / rate, LOADED_REQUESTS)),
        case.table.prompt_tokens[rows],
        case.table.output_tokens[rows],
        name="front end",
    )
    probe = dataclasses.replace(case, table=table, prediction=predict(table, "oracle", seed=seed))
    probe = probe.on(dataclasses.replace(cluster.profile, frontend_ms=0.0))
    [simulated] = simulate_case(probe, candidates(["round-robin"]), seed).values()
    live = replay_decisions(cluster, simulated).run.result
    over_s = live.records.first_token_s - simulated.records.first_token_s
    return max(0.0, 1e3 * float(trim_mean(over_s, 0.1)))


def check_servers(urls: Sequence[str], profile: StepProfile) -> str:
    """The model that all servers serve.

    Raises:
      LiveError: one cannot be reached, serves another model, or has another KV cache than the profile says.
    """

    async def facts() -> list[tuple[str, Counters]]:
        async with open_session() as session:
            return [((await served_model(session, url)).name, await read_counters(session, url)) for url in urls]

    found = uvloop.run(facts())
    for url, (name, counters) in zip(urls, found, strict=True):
        if name != found[0][0]:
            raise LiveError(f"{url}: serves {name}, but {urls[0]} serves {found[0][0]}; give servers of one model")
        size = (counters.kv_blocks, counters.block_size)
        if None not in size and size != (profile.kv_blocks, profile.block_size):
            raise LiveError(
                f"{url}: has {size[0]} KV blocks of {size[1]} tokens, profile {profile.name} {profile.kv_blocks} of "
                f"{profile.block_size}; give the server's own profile, see jaxroute profile"
            )
    return found[0][0]


def simulate_case(case: Case, routers: Sequence[Candidate], seed: int) -> dict[str, RunResult]:
    """The simulated run of each policy, by name."""
    results = {}
    for fleet, group in by_program(case.fleet, routers):
        runs = simulate(fleet, case.table, case.prediction, [each.policy for each in group], seed=seed)
        for candidate, run in zip(group, runs, strict=True):
            results[candidate.name] = dataclasses.replace(run, policy=candidate.name)
    return {candidate.name: results[candidate.name] for candidate in routers}


def measure(
    cluster: LiveCluster,
    load: Load,
    chooser: Chooser,
    *,
    name: str,
    urls: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Sends the requests and reads what the servers say of it.

    Args:
      cluster: the servers.
      load: the requests.
      chooser: which of `urls` each goes to.
      name: of the run.
      urls: where to send them; by default to the servers themselves.
      progress: called now and then.

    Raises:
      LiveError: a request failed.
    """

    async def run() -> tuple[LiveRun, list[Counters], list[Counters]]:
        async with open_session() as session:
            before = [await read_counters(session, url) for url in cluster.urls]
            made = await replay(session, urls or cluster.urls, load, chooser, name=name, progress=progress)
            await asyncio.sleep(SETTLE_S)
            return made, before, [await read_counters(session, url) for url in cluster.urls]

    made, before, after = uvloop.run(run())
    first, last = float(load.due_s.min()), float(made.result.records.finish_s.max())
    held = cluster.held_steps(made.origin + first, made.origin + last)
    return Measured(
        run=made,
        preemptions=tuple(b.preemptions - a.preemptions for a, b in zip(before, after, strict=True)),
        prefix_hits=sum(b.prefix_hits - a.prefix_hits for a, b in zip(before, after, strict=True)),
        held=held,
    )


def replay_decisions(cluster: LiveCluster, simulated: RunResult, progress: Progress | None = None) -> Measured:
    """Replays a simulated run's decisions: each request goes to its instance, at its time of dispatch.

    Raises:
      LiveError: a request failed.
    """
    records = simulated.records
    load = make_load(simulated.table, cluster.model, records.dispatch_s)
    return measure(cluster, load, Given(records.instance), name=simulated.policy, progress=progress)


def compare(case: Case, simulated: RunResult, measured: Sequence[Measured]) -> Comparison:
    """How far the simulated run is from each of the live ones, and these from one another."""
    live = [each.run.result for each in measured]
    expected = preemptions_at(simulated)
    preemptions = tuple(Preemptions(each.preemptions, expected) for each in measured)
    totals = [sum(each.preemptions) for each in measured]
    spread = 100 * (max(totals) - min(totals)) / max(1, min(totals))
    return Comparison(
        case=case,
        simulated=simulated,
        measured=tuple(measured),
        differences=tuple(differences(simulated, each) for each in live),
        preemptions=preemptions,
        noise_percent=noise_floor(live),
        noise_preemptions_percent=spread if len(live) > 1 else None,
    )


def run_case(
    cluster: LiveCluster,
    case: Case,
    routers: Sequence[Candidate],
    *,
    repeats: int,
    seed: int,
    progress: Callable[[str], Progress],
) -> list[Comparison]:
    """Simulates and measures every policy of a case; the repeats of the policies alternate.

    Raises:
      LiveError: a request failed.
    """
    simulated = simulate_case(case, routers, seed)
    measured: dict[str, list[Measured]] = {name: [] for name in simulated}
    for repeat in range(repeats):
        for name, result in simulated.items():
            report = progress(f"{case.name} {name} {repeat + 1}/{repeats}")
            measured[name].append(replay_decisions(cluster, result, report))
    return [compare(case, simulated[name], runs) for name, runs in measured.items()]
