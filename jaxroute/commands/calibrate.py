"""`jaxroute calibrate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxroute.commands.console import progress_bar, table_console
from jaxroute.commands.options import check_folder, names_of
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.calibrate.fit import Fitted, Fitting, Progress
    from jaxroute.profiles import StepProfile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Fit the step times of a profile to a log of requests, by derivatives through the simulator.

    The servers are simulated under the dispatches of the log, and their coefficients moved until TTFT and E2E are the
    logged ones. Writes OUT/profile.json, OUT/fit.json and OUT/fit.png. One request in five is not fitted but judged by.
    """

    log: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """A decision log of `jaxroute serve`, a requests.csv of `jaxroute simulate` or `jaxroute fidelity`, or what `vllm
    bench serve --save-result --save-detailed` wrote."""
    profile: str
    """Profile to start from, by name or JSON file: limits and KV size are taken from it, and what the log says nothing
    about."""
    out: Path
    """Folder to write to."""
    scheduler: str = "chunked"
    """prefill-first, chunked or whole-prompt."""
    servers: str = ""
    """Servers of the log that the profile is of, with commas (instances or backends); by default all."""
    kv_tokens: int | None = None
    """KV cache size of a server, tokens; by default the profile's."""
    max_num_seqs: int | None = None
    """Most sequences that a server runs at once; by default the profile's."""
    max_num_batched_tokens: int | None = None
    """Token budget of an engine step; by default the profile's."""
    requests: int | None = None
    """Use only so many requests, the first ones: a log of an hour says no more than its first minutes, only later."""
    name: str | None = None
    """Name of the new profile; by default that of the start with -fitted behind it."""
    method: Literal["gauss-newton", "adam"] = "gauss-newton"
    """Damped Gauss-Newton steps, or Adam (optax) on the same loss, which takes more simulations."""
    frontend: Literal["fit", "keep"] = "fit"
    """Whether the constant that the front end adds is fitted as well."""
    starts: int = 4
    """Points to start from, side by side: the profile, and others around it."""
    iterations: int | None = None
    """Most steps of the method; by default 20, of Adam 100."""
    seed: int = 0
    """Of the other starts."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.calibrate.fit import Fitting, Start
        from jaxroute.calibrate.log import check_enough, read_request_log
        from jaxroute.calibrate.model import ServerModel
        from jaxroute.calibrate.report import calibration_tables, write_calibration
        from jaxroute.calibrate.result import calibration, split

        console = table_console()
        if self.starts < 1 or (self.iterations is not None and self.iterations < 1):
            raise InputError("--starts and --iterations must be at least 1")
        check_folder(self.out)
        start = self._start()
        log = read_request_log(self.log)
        log = log.of_servers(tuple(names_of(self.servers))) if self.servers else log
        log = log if self.requests is None else log.first(self.requests)
        check_enough(log, self.log)
        used, judged = split(log)
        servers = len(log.servers)
        model = ServerModel.create(used, [start] * servers, [self.scheduler] * servers)
        fitting = Fitting(model, Start.of(start), fit_frontend=self.frontend == "fit")
        with progress_bar(console, "fitting") as report:
            fitted = self._fit(fitting, report)
        found = calibration(fitting, fitted, judged, start, name=self.name or f"{start.name}-fitted")
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}
        try:
            write_calibration(self.out, log, fitted, found, settings)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        console.print(calibration_tables(log, found))
        console.print(f"written to {self.out}")

    def _start(self) -> StepProfile:
        from jaxroute.cluster.config import SCHEDULERS
        from jaxroute.profiles import load_profile

        if self.scheduler not in SCHEDULERS:
            raise InputError(f"--scheduler {self.scheduler}: known are {', '.join(SCHEDULERS)}")
        profile = load_profile(self.profile)
        limits = {name: getattr(self, name) for name in ("max_num_seqs", "max_num_batched_tokens")}
        profile = dataclasses.replace(profile, **{name: value for name, value in limits.items() if value is not None})
        return profile if self.kv_tokens is None else profile.with_kv_tokens(self.kv_tokens)

    def _fit(self, fitting: Fitting, report: Progress) -> Fitted:
        from jaxroute.calibrate.fit import adam, gauss_newton, starts_of

        starts = starts_of(self.starts, self.seed)
        if self.method == "adam":
            return adam(fitting, starts, iterations=self.iterations or 100, progress=report)
        return gauss_newton(fitting, starts, iterations=self.iterations or 20, progress=report)
