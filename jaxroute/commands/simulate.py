"""`jaxroute simulate`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from jaxroute import metrics
from jaxroute.commands.console import progress_bar, table_console
from jaxroute.commands.options import FleetOptions, check_folder, names_of, rate_warning, smallest_profile
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.candidates import Candidate
    from jaxroute.policies.assigned import Decisions
    from jaxroute.results import RunResult
    from jaxroute.simulate import Fleet
    from jaxroute.workload.prediction import Prediction
    from jaxroute.workload.table import RequestTable

PICTURE_SPAN_S = 20.0
"""Seconds of engine steps that one timeline picture shows."""

BUSIEST = "busiest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulate(FleetOptions):
    """Run one or several routing policies over one workload on one fleet, and compare them.

    Writes DIR/POLICY.requests.csv, DIR/summary.json and pictures; nothing is written if anything is wrong.
    """

    workload: str
    """five-task, a synthetic set (see `jaxroute data`), a trace file, or a decision log of `jaxroute serve`."""
    out: Path
    """Folder to write to."""
    policy: str = "all"
    """Policies, with commas: names of heuristics (all: every one), default (the trained one that is shipped), a policy
    folder or training run, or module:object; NAME+spf: shortest predicted output first at the router; assigned:FILE
    replays given decisions: of a CSV, or of a decision log on its own requests."""
    instances: int = 4
    """I, servers in the fleet."""
    rate: float | None = None
    """Mean requests per second; a trace is stretched to it."""
    requests: int | None = None
    """Number of requests; of a trace, the first ones."""
    seed: int = 0
    """Seed of the workload and of random choices; every policy sees the same requests."""
    arrivals: Literal["poisson", "gamma", "constant"] = "poisson"
    """Arrival process of generated workloads."""
    cv: float = 2.0
    """Coefficient of variation of the gaps under --arrivals gamma."""
    heavy_prompt_s: float = 0.5
    """A prompt of a synthetic set is heavy when its prefill alone takes this long, seconds."""
    heavy_decode_s: float = 5.0
    """A decode of a synthetic set is heavy when it alone takes this long, seconds."""
    routers: int = 1
    """Replicas of the router that share no state, each acting every --dt. Requests come to them by turns, and each
    knows only what it sent itself, and the servers' metrics."""
    pictures: bool = True
    """Draw the pictures."""
    timeline: str | None = None
    """Seconds START:END, or busiest: draws for every policy the cluster over that time (router queue, holds, engine
    steps, preemptions) and the share of its actions over the whole run."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.candidates import by_program
        from jaxroute.simulate import replay, simulate

        console = table_console()
        policies, replayed = self._policies()
        check_folder(self.out)
        self._window(None)
        fleet = self.fleet_of(self.instances, self.routers)
        table, prediction = self._workload(fleet, console)
        fleet.check(table)
        if replayed and self.routers > 1:
            raise InputError(f"--routers {self.routers}: decisions are replayed by one router; leave --routers out")
        replays = {short: self._decisions(name, table) for name, short in replayed.items()}
        results: dict[str, RunResult] = {}
        with progress_bar(console, "simulating") as report:
            for own, group in by_program(fleet, policies):
                acting = [candidate.policy for candidate in group]
                runs = simulate(own, table, prediction, acting, seed=self.seed, progress=report)
                for candidate, run in zip(group, runs, strict=True):
                    results[candidate.name] = dataclasses.replace(run, policy=candidate.name)
            for short, decisions in replays.items():
                results[short] = replay(fleet, table, decisions, name=short, prediction=prediction, progress=report)
                self._warn_of_delays(results[short], decisions.dispatch_s, console)
        self._write([results[name] for name in (*(policy.name for policy in policies), *replays)], console)

    def _policies(self) -> tuple[list[Candidate], dict[str, str]]:
        """The policies that decide, and those that replay decisions with the names that they go by.

        Raises:
          InputError: a name that stands for no policy, or two of one name.
        """
        from jaxroute.candidates import candidates
        from jaxroute.policies import ASSIGNED, expand_names

        names = names_of(self.policy)
        asked = list(dict.fromkeys(name for name in names if name.startswith(ASSIGNED)))
        files = expand_names(asked) if asked else []
        deciding = [name for name in names if name not in files]
        policies = candidates(deciding) if deciding or not files else []
        plain = ASSIGNED.removesuffix(":")
        shown = {name: plain if len(files) == 1 else f"{plain}-{Path(name).stem}" for name in files}
        count = Counter([*(policy.name for policy in policies), *shown.values()])
        if repeated := [name for name in count if count[name] > 1]:
            raise InputError(f"--policy: two policies would be called {repeated[0]}; rename the file or folder of one")
        return policies, shown

    def _workload(self, fleet: Fleet, console: Console) -> tuple[RequestTable, Prediction]:
        from jaxroute.workload import fit_to_context, make_workload
        from jaxroute.workload.prediction import predict

        table = make_workload(
            self.workload,
            profile=smallest_profile(fleet),
            requests=self.requests,
            rate=self.rate,
            seed=self.seed,
            arrivals=self.arrivals,
            cv=self.cv,
            heavy_prompt_s=self.heavy_prompt_s,
            heavy_decode_s=self.heavy_decode_s,
        )
        for limit in self.limits(fleet):
            table, report = fit_to_context(table, limit, self.overlong)
            if report.changed:
                console.print(f"[yellow]{report.text}[/]")
        if warning := rate_warning(table.name, table.mean_rate, fleet.dt):
            console.print(f"[yellow]{warning}[/]")
        return table, predict(table, self.prediction, seed=self.seed)

    def _decisions(self, name: str, table: RequestTable) -> Decisions:
        from jaxroute.policies import ASSIGNED
        from jaxroute.policies.assigned import read_decisions

        return read_decisions(Path(name.removeprefix(ASSIGNED)), table, self.instances)

    def _warn_of_delays(self, result: RunResult, dispatch_s: object, console: Console) -> None:
        if dispatch_s is None:
            return
        late = float((result.records.dispatch_s - dispatch_s).max())
        if late > self.dt + 1e-6:
            console.print(
                f"[yellow]{result.policy}: decisions were replayed up to {late:.3f} s late, since one request is sent "
                f"per dt; lower --dt from {self.dt}[/]"
            )

    def _write(self, results: Sequence[RunResult], console: Console) -> None:
        from jaxroute.output import write_requests_csv, write_summary_json
        from jaxroute.report import comparison_table

        summaries = [metrics.summarise(result) for result in results]
        self.out.mkdir(parents=True, exist_ok=True)
        for result in results:
            write_requests_csv(result, self.out / f"{result.policy}.requests.csv")
        write_summary_json(summaries, self.settings(), self.out / "summary.json")
        if self.pictures:
            with console.status("drawing"):
                _draw(results, summaries, self.out)
        if self.timeline is not None:
            with console.status("drawing timelines"):
                for result in results:
                    _draw_timeline(result, self._window(result), self.out)
        console.print(comparison_table(summaries))
        console.print(f"written to {self.out}")

    def _window(self, result: RunResult | None) -> tuple[float, float]:
        """Seconds that the timeline of a run shows; without a run, the option is only checked."""
        if self.timeline in (None, BUSIEST):
            start_s = 0.0 if result is None else _busiest_s(result)
            return start_s, start_s + PICTURE_SPAN_S
        try:
            start_s, end_s = map(float, str(self.timeline).split(":"))
        except ValueError:
            start_s, end_s = 0.0, 0.0
        if not 0 <= start_s < end_s < float("inf"):
            raise InputError(f"--timeline {self.timeline}: give START:END in seconds, such as 40:60, or {BUSIEST}")
        return start_s, end_s


def _draw(results: Sequence[RunResult], summaries: Sequence[metrics.Summary], folder: Path) -> None:
    """CDFs and comparison of all; queues and engine steps of round robin and of the best."""
    from jaxroute import plots

    plots.save(plots.latency_cdf(results), folder / "latency_cdf.png")
    if len(results) > 1:
        plots.save(plots.policy_comparison(results), folder / "policies.png")
    best = min(summaries, key=lambda summary: summary.e2e_mean_s).policy
    reference = metrics.reference_summary(summaries).policy
    for result in results:
        if result.policy in (best, reference):
            start_s = _busiest_s(result)
            plots.save(plots.queue_lengths(result), folder / f"{result.policy}.queues.png")
            picture = plots.step_timeline(result, start_s, start_s + PICTURE_SPAN_S)
            plots.save(picture, folder / f"{result.policy}.steps.png")


def _draw_timeline(result: RunResult, window: tuple[float, float], folder: Path) -> None:
    from jaxroute import plots
    from jaxroute.plots_cluster import action_share, cluster_timeline

    plots.save(cluster_timeline(result, *window), folder / f"{result.policy}.timeline.png")
    plots.save(action_share(result), folder / f"{result.policy}.actions.png")


def _busiest_s(result: RunResult) -> float:
    """Start of the picture: a little before the longest engine step, where a TBT spike is to be seen."""
    timeline = result.timeline
    if timeline is None or len(timeline.step_duration_s) == 0:
        return 0.0
    longest = float(timeline.step_start_s[timeline.step_duration_s.argmax()])
    return max(0.0, longest - PICTURE_SPAN_S / 2)
