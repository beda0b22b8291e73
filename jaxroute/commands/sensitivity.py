"""`jaxroute sensitivity`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from jaxroute.commands.console import progress_bar, table_console
from jaxroute.commands.options import FleetOptions, check_folder, rate_warning, smallest_profile
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.simulate import Fleet
    from jaxroute.workload.table import RequestTable

CAPACITY_SEED = 2**31 - 1
"""Of the requests by which the capacity is estimated, as in `jaxroute evaluate`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity(FleetOptions):
    """What the latency of a fleet depends on: % of change for 1 % more memory bandwidth, compute, KV cache or load.

    Each number comes from simulations a little to both sides with the same requests; beside it the derivatives through
    the simulator, which hold the order of events. Writes OUT/sensitivity.json and OUT/sensitivity.png.
    """

    workload: str
    """five-task, chat, a synthetic set (see `jaxroute data`), or a trace file."""
    out: Path
    """Folder to write to."""
    policy: str = "round-robin"
    """The policy: a name, folder or module:object as for `jaxroute evaluate`."""
    instances: int = 4
    """I, servers in the fleet."""
    load: float = 0.7
    """Arrival rate as a multiple of the estimated capacity."""
    seeds: int = 10
    """Draws of the workload, each of them simulated at every change."""
    first_seed: int = 1_000_000
    """The first of them."""
    requests: int | None = None
    """Requests of each run; by default the workload's own number, of a trace up to 2,000."""
    step_percent: float = 3.0
    """Change of times and of the arrival rate to both sides, %."""
    size_step_percent: float = 10.0
    """Change of KV size and max_num_seqs to both sides, %."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.calibrate.sensitivity import sensitivities
        from jaxroute.calibrate.sensitivity_report import sensitivity_table, write_sensitivity
        from jaxroute.candidates import candidate

        console = table_console()
        self._check()
        policy, fleet = candidate(self.policy), self.fleet_of(self.instances)
        seeds = tuple(range(self.first_seed, self.first_seed + self.seeds))
        rate, tables = self._tables(fleet, seeds, console)
        with progress_bar(console, "simulating") as report:
            means, found = sensitivities(
                fleet,
                tables,
                seeds,
                policy,
                prediction=self.prediction,
                step=self.step_percent / 100,
                size_step=self.size_step_percent / 100,
                progress=report,
            )
        title = (
            f"{self.profile} x {self.instances}, {Path(self.workload).name} at load {self.load:g} "
            f"({rate:.3g} requests/s), {policy.name}, {self.seeds} seeds"
        )
        try:
            write_sensitivity(self.out, title, means, found, self.settings())
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        console.print(sensitivity_table(title, means, found))
        console.print(f"written to {self.out}")

    def _check(self) -> None:
        check_folder(self.out)
        if not (math.isfinite(self.load) and self.load > 0):
            raise InputError(f"--load is {self.load}, must be a finite number above 0")
        if self.seeds < 1 or self.first_seed < 0 or self.first_seed + self.seeds > CAPACITY_SEED:
            raise InputError(f"--seeds is {self.seeds} from {self.first_seed}; give at least 1, from 0 on")
        for name in ("step_percent", "size_step_percent"):
            if not 0 < getattr(self, name) < 50:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, must be between 0 and 50")

    def _tables(self, fleet: Fleet, seeds: tuple[int, ...], console: Console) -> tuple[float, list[RequestTable]]:
        """The rate that the load is, and the requests of each seed."""
        from jaxroute.capacity import estimate_capacity, requests_needed
        from jaxroute.workload.draws import Draws

        draws = Draws.create(
            self.workload,
            profile=smallest_profile(fleet),
            requests=self.requests,
            limits=self.limits(fleet),
            overlong=self.overlong,
        )
        with console.status("estimating the capacity"):
            rate = self.load * estimate_capacity(fleet, draws.sample(requests_needed(fleet), CAPACITY_SEED))
        if warning := rate_warning(draws.name, rate, self.dt):
            console.print(f"[yellow]{warning}[/]")
        return rate, [draws.table(seed, rate)[0] for seed in seeds]
