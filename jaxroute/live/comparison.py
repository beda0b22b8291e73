"""Ways to live servers by turns on the same requests, and whether the simulator foresees which is better."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxroute.candidates import candidate
from jaxroute.live.agreement import QUANTITIES, preemptions_at, statistics
from jaxroute.live.cluster import LiveCluster
from jaxroute.live.fidelity import Case, Measured, measure, simulate_case
from jaxroute.live.replay import LiveRun, Progress, make_load
from jaxroute.live.router_process import backend_name
from jaxroute.live.ways import JAXROUTE, Way, opened
from jaxroute.paired import Interval, mean_interval, relative_difference
from jaxroute.results import RunResult
from jaxroute.serve.visits import PREDICTION_HEADER
from jaxroute.workload.prediction import Prediction

COLUMNS = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tbt_mean_s", "preemptions")
RANKED_BY = "e2e_mean_s"

CLEAR_GAP_PERCENT = 5.0
"""Predicted difference of two ways above which the simulator must have them in the right order."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One way's run of one round.

    Attributes:
      way: which.
      round: 0-based.
      measured: the run.
      numbers: of `COLUMNS`.
    """

    way: Way
    round: int
    measured: Measured
    numbers: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two ways whose predicted difference is clear.

    Attributes:
      better, worse: as the simulator has them.
      predicted_percent: how much worse, mean E2E.
      measured_percent: likewise live, with its interval over the rounds.
    """

    better: str
    worse: str
    predicted_percent: float
    measured_percent: Interval

    @property
    def agrees(self) -> bool:
        """Whether live servers have them in the same order."""
        return self.measured_percent.value > 0


@dataclasses.dataclass(frozen=True)
class Contest:
    """All ways in one case.

    Attributes:
      case: requests of the first round, and the fleet.
      turns: every run.
      live: way -> column -> [rounds].
      simulated: likewise, of those that we simulate.
    """

    case: Case
    turns: tuple[Turn, ...]
    live: Mapping[str, Mapping[str, np.ndarray]]
    simulated: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def means(self) -> dict[str, dict[str, Interval]]:
        """Mean of each column over the rounds."""
        return {name: {column: mean_interval(own[column]) for column in COLUMNS} for name, own in self.live.items()}

    def against(self, reference: str) -> dict[str, dict[str, Interval]]:
        """Difference of each way's columns to those of one of them, %, the rounds in pairs."""
        base = self.live[reference]
        return {
            name: {column: relative_difference(own[column], base[column]) for column in COLUMNS}
            for name, own in self.live.items()
        }

    @property
    def pairs(self) -> list[Pair]:
        """The pairs of ways whose predicted difference in mean E2E is clear."""
        predicted = {name: float(own[RANKED_BY].mean()) for name, own in self.simulated.items()}
        found = []
        for one, other in itertools.combinations(predicted, 2):
            better, worse = sorted((one, other), key=predicted.__getitem__)
            gap = 100 * (predicted[worse] / predicted[better] - 1)
            if gap > CLEAR_GAP_PERCENT:
                live = relative_difference(self.live[worse][RANKED_BY], self.live[better][RANKED_BY])
                found.append(Pair(better, worse, gap, live))
        return found


def run_contest(
    cluster: LiveCluster,
    rounds: Sequence[Case],
    ways: Sequence[Way],
    *,
    program: str,
    scrape_s: float,
    folder: Path,
    progress: Callable[[str], Progress],
    done: Callable[[Turn], None],
) -> Contest:
    """Measures every way in every round, in another order each time, and simulates those that it can.

    Args:
      cluster: the servers.
      rounds: one case for each round: the same but for its requests.
      ways: at least one.
      program: the vllm-router to start.
      scrape_s: between two readings of a server's metrics by `jaxroute serve`, seconds.
      folder: for configurations and logs of routers.
      progress: says what runs, and gets how far it is.
      done: called after each run.

    Raises:
      LiveError: a request failed.
      InputError: a router does not start.
    """
    simulated = [_simulated(case, ways, seed) for seed, case in enumerate(rounds)]
    turns = []
    for number, case in enumerate(rounds):
        order = np.random.default_rng(number).permutation(len(ways))
        for way in (ways[index] for index in order):
            report = progress(f"{case.name} round {number + 1}/{len(rounds)} {way.name}")
            measured = _measure(cluster, case, way, program=program, scrape_s=scrape_s, folder=folder, report=report)
            turn = Turn(way, number, measured, live_numbers(measured))
            turns.append(turn)
            done(turn)
    by_way = {way.name: [turn.numbers for turn in turns if turn.way == way] for way in ways}
    return Contest(
        case=rounds[0],
        turns=tuple(turns),
        live={name: _columns(numbers) for name, numbers in by_way.items()},
        simulated={name: _columns([each[name] for each in simulated]) for name in simulated[0]},
    )


def prediction_headers(prediction: Prediction) -> list[dict[str, str]]:
    """[N] headers that state the predictions to a `jaxroute serve` that trusts them."""
    both = zip(prediction.tokens.tolist(), prediction.upper.tolist(), strict=True)
    return [{PREDICTION_HEADER: f"{tokens},{upper}"} for tokens, upper in both]


def live_numbers(measured: Measured) -> dict[str, float]:
    """The numbers of `COLUMNS` of a live run."""
    return _numbers(measured.run.result, sum(measured.preemptions))


def _measure(
    cluster: LiveCluster, case: Case, way: Way, *, program: str, scrape_s: float, folder: Path, report: Progress
) -> Measured:
    load = make_load(case.table, cluster.model, case.table.arrival_s)
    if way.kind == JAXROUTE:
        load = dataclasses.replace(load, headers=prediction_headers(case.prediction))
    with opened(way, cluster, len(case.table), program=program, scrape_s=scrape_s, folder=folder) as entrance:
        made = measure(cluster, load, entrance.chooser, name=way.name, urls=entrance.urls, progress=report)
    if entrance.urls == cluster.urls:
        return made
    return dataclasses.replace(made, run=_with_instances(made.run, len(cluster.urls)))


def _with_instances(run: LiveRun, instances: int) -> LiveRun:
    """The run with the servers that the router says it chose; -1 where it does not say."""
    index = {backend_name(number): number for number in range(instances)}
    where = np.asarray([index.get(name, -1) for name in run.backends])
    records = dataclasses.replace(run.result.records, instance=where)
    return dataclasses.replace(
        run, result=dataclasses.replace(run.result, records=records, frontend_s=np.zeros(instances))
    )


def _simulated(case: Case, ways: Sequence[Way], seed: int) -> dict[str, dict[str, float]]:
    """Numbers of the ways that we simulate; ways that are one policy to us share a run."""
    names = dict.fromkeys(way.simulated for way in ways if way.simulated is not None)
    chosen = {name: candidate(name) for name in names}
    runs = simulate_case(case, list(chosen.values()), seed)
    numbers = {name: _numbers(runs[each.name], sum(preemptions_at(runs[each.name]))) for name, each in chosen.items()}
    return {way.name: numbers[way.simulated] for way in ways if way.simulated is not None}


def _numbers(result: RunResult, preemptions: int) -> dict[str, float]:
    parts = {}
    for name, of in QUANTITIES.items():
        values = of(result)
        parts[name] = statistics(values[~np.isnan(values)])
    return {
        "e2e_mean_s": parts["e2e"]["mean"],
        "e2e_p99_s": parts["e2e"]["p99"],
        "ttft_mean_s": parts["ttft"]["mean"],
        "ttft_p99_s": parts["ttft"]["p99"],
        "tbt_mean_s": parts["tbt"]["mean"],
        "preemptions": float(preemptions),
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    return {column: np.asarray([row[column] for row in rows]) for column in COLUMNS}
