"""`jaxroute fidelity`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from jaxroute.commands.console import progress_bar, table_console
from jaxroute.commands.live_options import LiveOptions
from jaxroute.commands.options import check_folder, names_of
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.candidates import Candidate
    from jaxroute.live.fidelity import Case, Comparison
    from jaxroute.live.fidelity_report import Servers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fidelity(LiveOptions):
    """How far the simulator is from real vLLM servers: the same decisions simulated and replayed live.

    Routing decisions are simulated, sent to the servers at the same times, and both runs compared: errors of E2E, TTFT
    and TBT, request by request as well, and preemptions. Writes OUT/fidelity.json, and for each case and policy the
    requests of every run and a picture.
    """

    policy: str = "round-robin,join-shortest-queue,gated-central-queue"
    """Policies whose decisions are replayed, with commas: names as for `jaxroute simulate`."""
    scheduler: str = "chunked"
    """chunked or whole-prompt; both with a comma, for a testbed of each in turn."""
    repeats: int = 1
    """Live runs of the same decisions; two and more show how far live runs are from each other."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.candidates import candidates
        from jaxroute.live.fidelity_report import error_table, write_fidelity

        console = table_console()
        self.check()
        check_folder(self.out)
        if self.repeats < 1:
            raise InputError(f"--repeats is {self.repeats}, must be at least 1")
        schedulers = list(dict.fromkeys(names_of(self.scheduler)))
        if self.url and len(schedulers) != 1:
            raise InputError("--scheduler: servers at --url have one; name it")
        policies = candidates(names_of(self.policy))
        plans = {scheduler: self._cases(scheduler, console) for scheduler in schedulers}
        servers: list[Servers] = []
        made: list[Comparison] = []
        for scheduler, cases in plans.items():
            for own, comparisons in self._measure(scheduler, cases, policies, console):
                servers += [own] if own not in servers else []
                made += comparisons
                # What has been measured stays, whatever happens to the rest.
                write_fidelity(self.out, servers, made, comparisons, self.settings())
        console.print(error_table(made))
        console.print(f"written to {self.out}")

    def _cases(self, scheduler: str, console: Console) -> list[Case]:
        """All that will be run on the servers of a scheduler, checked before they start."""
        from jaxroute.live.fidelity import Case
        from jaxroute.workload.prediction import predict

        fleet = self.fleet(self.servers(scheduler), scheduler)
        cases = []
        for each in self.traffic(fleet, console):
            table = each.table(self.seed)
            fleet.check(table)
            prediction = predict(table, self.prediction, seed=self.seed)
            cases.append(Case(scheduler, each.workload, each.load, each.rate_per_s, fleet, table, prediction))
        return cases

    def _measure(
        self, scheduler: str, cases: list[Case], policies: list[Candidate], console: Console
    ) -> Iterator[tuple[Servers, list[Comparison]]]:
        from jaxroute.live.fidelity import measure_idle, run_case
        from jaxroute.live.fidelity_report import Servers

        with self.running(scheduler, console) as cluster:
            with console.status("measuring the front end"):
                frontend = measure_idle(cluster, cases[0].table.prompt_tokens)
            console.print(
                f"{scheduler}: frontend_ms {frontend.frontend_ms:.2f}; a decode step takes "
                f"{frontend.step_excess_ms:+.3f} ms beyond its profile"
            )
            profile = dataclasses.replace(cluster.profile, frontend_ms=frontend.frontend_ms)
            own = Servers(scheduler, profile, frontend)
            for case in cases:
                fleet = dataclasses.replace(case.fleet, profiles=(profile,) * len(cluster.urls))
                known = dataclasses.replace(case, fleet=fleet)
                with _bars(console) as progress:
                    comparisons = run_case(
                        cluster, known, policies, repeats=self.repeats, seed=self.seed, progress=progress
                    )
                yield own, comparisons


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A bar that says which run it shows."""
    with progress_bar(console, "live") as report:

        def start(what: str) -> Callable[[int, int], None]:
            console.print(f"[dim]{what}[/]")
            return report

        yield start
