"""`jaxroute simulate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from jaxroute import metrics
from jaxroute.commands.console import table_console
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.policies.assigned import Decisions
    from jaxroute.results import RunResult
    from jaxroute.simulate import Fleet
    from jaxroute.simulate import Progress as Report
    from jaxroute.workload.prediction import Prediction
    from jaxroute.workload.table import RequestTable

PICTURE_SPAN_S = 20.0
"""Seconds of engine steps that one timeline picture shows."""


@dataclasses.dataclass(frozen=True)
class Simulate:
    """Run one or several routing policies over one workload on one fleet, and compare them.

    Writes DIR/POLICY.requests.csv, DIR/summary.json and pictures; nothing is written if anything is wrong.
    """

    profile: str
    """Profile of the servers, by name (see `jaxroute profiles`) or JSON file; several with commas for a mixed fleet."""
    workload: str
    """five-task, a synthetic set (see `jaxroute data`), or a trace file."""
    out: Path
    """Folder to write to."""
    policy: str = "all"
    """Policies, with commas; all: every heuristic; NAME+spf: shortest predicted output first at the router;
    assigned:FILE.csv replays given decisions."""
    instances: int = 4
    """I, servers in the fleet."""
    scheduler: str = "chunked"
    """prefill-first, chunked or whole-prompt; several with commas for a mixed fleet."""
    batching: str = "fcfs"
    """Order of the servers' waiting queues: fcfs, least-work-left or bin-packing."""
    rate: float | None = None
    """Mean requests per second; a trace is stretched to it."""
    requests: int | None = None
    """Number of requests; of a trace, the first ones."""
    kv_tokens: int | None = None
    """KV cache size of every server, tokens; by default the profile's."""
    max_num_seqs: int | None = None
    """Most sequences that a server runs at once; by default the profile's."""
    max_num_batched_tokens: int | None = None
    """Token budget of an engine step; by default the profile's."""
    seed: int = 0
    """Seed of the workload and of random choices; every policy sees the same requests."""
    dt: float = 0.02
    """Router interval, seconds."""
    arrivals: Literal["poisson", "gamma", "constant"] = "poisson"
    """Arrival process of generated workloads."""
    cv: float = 2.0
    """Coefficient of variation of the gaps under --arrivals gamma."""
    prediction: str = "oracle"
    """What the router is told of output lengths: oracle (the true bucket), none, or a probability such as 0.8."""
    ageing: float = 5.0
    """Predicted tokens that a second of waiting is worth under +spf."""
    overlong: Literal["error", "clip", "drop"] = "error"
    """What to do with requests that a server cannot hold: stop, cut the prompt, or leave them out."""
    scrape_s: float = 0.1
    """Time between two scrapes of the servers' metrics, seconds."""
    heavy_prompt_s: float = 0.5
    """A prompt of a synthetic set is heavy when its prefill alone takes this long, seconds."""
    heavy_decode_s: float = 5.0
    """A decode of a synthetic set is heavy when it alone takes this long, seconds."""
    pictures: bool = True
    """Draw the pictures."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.policies import ASSIGNED, expand_names, heuristic, split_order
        from jaxroute.simulate import replay, simulate

        console = table_console()
        names = expand_names([name.strip() for name in self.policy.split(",") if name.strip()])
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out}: is a file; give a folder")
        fleet = self._fleet()
        table, prediction = self._workload(fleet, console)
        fleet.check(table)
        replays = {name: self._decisions(name, table) for name in names if name.startswith(ASSIGNED)}
        heuristics = [heuristic(name) for name in names if name not in replays]
        results: dict[str, RunResult] = {}
        with _progress(console, "simulating") as report:
            for order in dict.fromkeys(split_order(policy.name)[1] for policy in heuristics):
                ordered = dataclasses.replace(fleet, router_order=order, ageing=self.ageing)
                group = [policy for policy in heuristics if split_order(policy.name)[1] == order]
                runs = simulate(ordered, table, prediction, group, seed=self.seed, progress=report)
                results |= {run.policy: run for run in runs}
            for name, decisions in replays.items():
                short = ASSIGNED.removesuffix(":") if len(replays) == 1 else f"assigned-{Path(name).stem}"
                results[name] = replay(fleet, table, decisions, name=short, prediction=prediction, progress=report)
                self._warn_of_delays(results[name], decisions.dispatch_s, console)
        self._write([results[name] for name in names], console)

    def _fleet(self) -> Fleet:
        from jaxroute.profiles import load_profile
        from jaxroute.simulate import Fleet

        if self.instances < 1:
            raise InputError(f"--instances is {self.instances}, must be at least 1")
        profiles = [load_profile(name) for name in _spread(self.profile, self.instances, "--profile")]
        if self.max_num_seqs is not None:
            profiles = [dataclasses.replace(profile, max_num_seqs=self.max_num_seqs) for profile in profiles]
        if self.max_num_batched_tokens is not None:
            budget = self.max_num_batched_tokens
            profiles = [dataclasses.replace(profile, max_num_batched_tokens=budget) for profile in profiles]
        if self.kv_tokens is not None:
            profiles = [profile.with_kv_tokens(self.kv_tokens) for profile in profiles]
        fleet = Fleet(
            profiles=tuple(profiles),
            schedulers=tuple(_spread(self.scheduler, self.instances, "--scheduler")),
            dt=self.dt,
            batching=self.batching,
            scrape_s=self.scrape_s,
        )
        fleet.params()
        fleet.config(1, records=False)
        return fleet

    def _workload(self, fleet: Fleet, console: Console) -> tuple[RequestTable, Prediction]:
        from jaxroute.workload import fit_to_context, make_workload
        from jaxroute.workload.prediction import predict

        smallest = min(fleet.profiles, key=lambda profile: min(profile.max_model_len, profile.kv_tokens))
        table = make_workload(
            self.workload,
            profile=smallest,
            requests=self.requests,
            rate=self.rate,
            seed=self.seed,
            arrivals=self.arrivals,
            cv=self.cv,
            heavy_prompt_s=self.heavy_prompt_s,
            heavy_decode_s=self.heavy_decode_s,
        )
        longest = [min(profile.max_model_len for profile in fleet.profiles)]
        if self.overlong != "error":
            longest.append(fleet.longest_request)
        for limit in longest:
            table, report = fit_to_context(table, limit, self.overlong)
            if report.changed:
                console.print(f"[yellow]{report.text}[/]")
        if table.mean_rate > 1 / self.dt:
            console.print(
                f"[yellow]{table.name} brings {table.mean_rate:.0f} requests/s, but a router that acts every "
                f"{self.dt} s sends at most {1 / self.dt:.0f}; the difference queues at the router: lower --dt[/]"
            )
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
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        write_summary_json(summaries, settings, self.out / "summary.json")
        if self.pictures:
            with console.status("drawing"):
                _draw(results, summaries, self.out)
        console.print(comparison_table(summaries))
        console.print(f"written to {self.out}")


def _spread(text: str, instances: int, option: str) -> list[str]:
    values = [value.strip() for value in text.split(",") if value.strip()]
    if len(values) == 1:
        return values * instances
    if len(values) != instances:
        raise InputError(f"{option}: {len(values)} values for {instances} instances; give one, or one for each")
    return values


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Report]:
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


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


def _busiest_s(result: RunResult) -> float:
    """Start of the picture: a little before the longest engine step, where a TBT spike is to be seen."""
    timeline = result.timeline
    if timeline is None or len(timeline.step_duration_s) == 0:
        return 0.0
    longest = float(timeline.step_start_s[timeline.step_duration_s.argmax()])
    return max(0.0, longest - PICTURE_SPAN_S / 2)
