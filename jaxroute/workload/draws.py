"""Many draws of one workload: a new table for each seed of a generated one, another window for each seed of a trace."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.workload.arrivals import retime
from jaxroute.workload.factory import make_workload, workload_names
from jaxroute.workload.limits import LimitReport, fit_to_context
from jaxroute.workload.table import RequestTable

MOST_WINDOW_REQUESTS = 2000
"""Requests of a trace's window where nobody says how many."""

WINDOW_STREAM, SAMPLE_STREAM = 0x77696E64, 0x73616D70
"""Keep the random numbers of windows and samples apart from those of other users of a seed."""


@dataclasses.dataclass(frozen=True)
class Draws:
    """A workload to draw from.

    Attributes:
      name: as it was asked for.
      requests: N of each draw, where `overlong` leaves none out; None: the generated workload's own number.
      profile: says what is heavy in the synthetic sets.
      limits: most prompt + output tokens, one after the other.
      overlong: what becomes of longer requests, see `fit_to_context`.
      trace: the whole trace, already cut to the limits; None for a generated workload.
      report: what the limits did to the trace.
    """

    name: str
    requests: int | None
    profile: StepProfile
    limits: tuple[int, ...]
    overlong: str
    trace: RequestTable | None = None
    report: tuple[LimitReport, ...] = ()

    @classmethod
    def create(
        cls, name: str, *, profile: StepProfile, requests: int | None, limits: tuple[int, ...], overlong: str
    ) -> Draws:
        """The workload of that name, or that trace file.

        Raises:
          InputError: no such workload, a bad file or number, or more requests than a trace has.
        """
        if requests is not None and requests < 2:
            raise InputError(f"--requests is {requests}, must be at least 2")
        draws = cls(name, requests, profile, limits, overlong)
        if name in workload_names():
            return draws
        trace, report = draws.fit(make_workload(name, profile=profile))
        if requests is not None and requests > len(trace):
            raise InputError(f"{name}: --requests is {requests}, but the trace has only {len(trace)}")
        count = min(MOST_WINDOW_REQUESTS, len(trace)) if requests is None else requests
        if count < 2:
            raise InputError(f"{name}: a trace of {len(trace)} requests has no rate; give one of at least 2")
        return dataclasses.replace(draws, requests=count, trace=trace, report=report)

    def fit(self, table: RequestTable) -> tuple[RequestTable, tuple[LimitReport, ...]]:
        """The table cut to the limits, and a report for each limit.

        Raises:
          InputError: see `fit_to_context`.
        """
        reports = []
        for limit in self.limits:
            table, report = fit_to_context(table, limit, self.overlong)
            reports.append(report)
        return table, tuple(reports)

    def table(self, seed: int, rate: float) -> tuple[RequestTable, tuple[LimitReport, ...]]:
        """The requests of one seed at a mean rate (requests per second), and what the limits did to them.

        Of a trace: its requests from a random one on, in their order and with their gaps, the beginning after the end
        where need be; each window is stretched to the rate, so that its load is what it is said to be.

        Raises:
          InputError: a bad rate, or requests that exceed the limits.
        """
        if self.trace is None:
            return self.fit(self._generated(self.requests, seed, rate))
        rng = np.random.default_rng([seed, WINDOW_STREAM])
        cut = window(self.trace, int(rng.integers(len(self.trace))), self.requests or len(self.trace))
        return retime(cut, rate), self.report

    def sample(self, count: int, seed: int) -> RequestTable:
        """`count` requests of the same kind, cut to the limits, whose arrival times mean nothing.

        Of a trace: the whole of it in random order, several times over where need be.
        """
        if self.trace is None:
            return self.fit(self._generated(count, seed, 1.0))[0]
        rng = np.random.default_rng([seed, SAMPLE_STREAM])
        rounds = -(-count // len(self.trace))
        rows = np.concatenate([rng.permutation(len(self.trace)) for _ in range(rounds)])
        return self.trace.take(rows[:count])

    def _generated(self, count: int | None, seed: int, rate: float) -> RequestTable:
        return make_workload(self.name, profile=self.profile, requests=count, rate=rate, seed=seed)


def window(trace: RequestTable, first: int, count: int) -> RequestTable:
    """`count` requests of a trace from row `first` on, the beginning after the end; the first arrives at 0.

    Between the last request and the first lies the trace's mean gap.
    """
    rows = (first + np.arange(count)) % len(trace)
    laps = (first + np.arange(count)) // len(trace)
    span = float(trace.arrival_s[-1] - trace.arrival_s[0])
    lap_s = span + span / max(1, len(trace) - 1)
    table = trace.take(rows)
    arrival_s = table.arrival_s + laps * lap_s
    return table.replace(arrival_s=arrival_s - arrival_s[0])
