"""`jaxroute fidelity`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from jaxroute.commands.console import table_console
from jaxroute.commands.live_options import LiveOptions, run_bars
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
        plans = {scheduler: self.cases(scheduler, [self.seed], console) for scheduler in schedulers}
        servers: list[Servers] = []
        made: list[Comparison] = []
        for scheduler, cases in plans.items():
            for own, comparisons in self._measure(scheduler, [case for [case] in cases], policies, console):
                servers += [own] if own not in servers else []
                made += comparisons
                # What has been measured stays, whatever happens to the rest.
                write_fidelity(self.out, servers, made, comparisons, self.settings())
        console.print(error_table(made))
        console.print(f"written to {self.out}")

    def _measure(
        self, scheduler: str, cases: list[Case], policies: list[Candidate], console: Console
    ) -> Iterator[tuple[Servers, list[Comparison]]]:
        from jaxroute.live.fidelity import run_case

        with self.running(scheduler, console) as cluster:
            own = self.measured(cluster, cases, console)
            for case in cases:
                with run_bars(console) as progress:
                    comparisons = run_case(
                        cluster,
                        case.on(own.profile),
                        policies,
                        repeats=self.repeats,
                        seed=self.seed,
                        progress=progress,
                    )
                yield own, comparisons
