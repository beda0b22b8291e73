"""`jaxroute compare-live`."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

from rich.console import Console

from jaxroute.commands.console import table_console
from jaxroute.commands.live_options import LiveOptions, run_bars
from jaxroute.commands.options import check_folder, names_of
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.live.cluster import LiveCluster
    from jaxroute.live.comparison import Contest
    from jaxroute.live.fidelity import Case
    from jaxroute.live.fidelity_report import Servers
    from jaxroute.live.ways import Way


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareLive(LiveOptions):
    """Routers on real vLLM servers, by turns on the same requests, and the simulator's prediction beside them.

    Ways to the servers are direct:round-robin and direct:fewest-requests (the client chooses), vllm-router:POLICY
    (PyPI's vllm-router, where it is installed) and jaxroute:POLICY (`jaxroute serve`; jaxroute:default+fcfs is the
    shipped policy with its queue in order of arrival). Writes OUT/comparison.json, and for each case a picture and
    the requests of every run.
    """

    ways: str = "all"
    """Ways to the servers, with commas; all: both direct ones, three of vllm-router, both of the shipped policy."""
    vllm_router: str = "vllm-router"
    """The program of that name; the ways through it are left out where it is not found."""
    rounds: int = 3
    """Rounds, each with requests of its own that take every way; intervals need at least 2."""
    prediction: str = "0.8"
    """What `jaxroute serve` is told of output lengths, since random prompts say nothing: a probability such as 0.8 of
    the true bucket, else a neighbour; oracle, none or confusion as for `jaxroute simulate`."""
    scrape_s: float = 0.5
    """Time between two readings of a server's metrics by `jaxroute serve`, seconds, 0.05 to 1."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.live.comparison_report import comparison_json, contest_table, write_comparison
        from jaxroute.live.ways import OURS, write_fcfs_default

        console = table_console()
        self.check()
        check_folder(self.out)
        if self.rounds < 1:
            raise InputError(f"--rounds is {self.rounds}, must be at least 1")
        if not 0.05 <= self.scrape_s <= 1:
            raise InputError(f"--scrape-s is {self.scrape_s}, must be 0.05 to 1 (seconds)")
        schedulers = list(dict.fromkeys(names_of(self.scheduler)))
        if self.url and len(schedulers) != 1:
            raise InputError("--scheduler: servers at --url have one; name it")
        ways = self._ways(console)
        seeds = range(self.seed, self.seed + self.rounds)
        plans = {scheduler: self.cases(scheduler, seeds, console) for scheduler in schedulers}
        routers = self.out / "routers"
        routers.mkdir(parents=True, exist_ok=True)
        write_fcfs_default(routers)
        servers: list[Servers] = []
        contests: list[Contest] = []
        reference = OURS if OURS in {way.name for way in ways} else ways[0].name
        for scheduler, plan in plans.items():
            with self.running(scheduler, console) as cluster:
                own = self.measured(cluster, [case for rounds in plan for case in rounds], console)
                servers.append(own)
                known = dataclasses.replace(cluster, profile=own.profile)
                for rounds in plan:
                    contests.append(self._contest(known, [case.on(own.profile) for case in rounds], ways, console))
                    content = comparison_json(servers, contests, reference, self.settings())
                    write_comparison(self.out, contests[-1], content)
        for contest in contests:
            console.print(contest_table(contest, reference))
        console.print(f"written to {self.out}")

    def _ways(self, console: Console) -> list[Way]:
        from jaxroute.live.ways import ALL, VLLM_ROUTER, ways

        names = names_of(self.ways)
        if not names:
            raise InputError("--ways: no way given; all is the default")
        found = ways(list(ALL) if names == ["all"] else names, self.out / "routers")
        if shutil.which(self.vllm_router) is not None:
            return found
        without = [way for way in found if way.kind != VLLM_ROUTER]
        if names != ["all"] and len(without) < len(found):
            raise InputError(
                f"--vllm-router {self.vllm_router}: is not found; pip install vllm-router into an environment of its "
                "own and give the path of that program"
            )
        if len(without) < len(found):
            console.print(f"[yellow]{self.vllm_router} is not found: the ways through it are left out[/]")
        return without

    def _contest(self, cluster: LiveCluster, rounds: list[Case], ways: list[Way], console: Console) -> Contest:
        from jaxroute.live.comparison import run_contest
        from jaxroute.live.comparison_report import write_turn

        with run_bars(console) as progress:
            return run_contest(
                cluster,
                rounds,
                ways,
                program=shutil.which(self.vllm_router) or self.vllm_router,
                scrape_s=self.scrape_s,
                folder=self.out / "routers",
                progress=progress,
                done=lambda turn: write_turn(self.out, rounds[0].name, turn),
            )
