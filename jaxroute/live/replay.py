"""Open-loop load: every request goes out at its own time, however long the others take."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import aiohttp
import numpy as np

from jaxroute.live.client import Completion, LiveError, completion_body, stream_completion
from jaxroute.live.prompts import random_prompts
from jaxroute.results import RequestRecords, RunResult
from jaxroute.workload.table import RequestTable

SPIN_S = 0.002
"""Before a request is due, in which the loop is kept awake: its timers are only good to a millisecond."""

LEAD_S = 0.1
"""From the start of a run to its time zero."""

LATE_P99_S = 0.002
"""99th percentile of the lateness above which the client could not keep up."""

PRIORITY = 2
"""In the real-time class: above the testbed's engines, whose work in hand would delay a request."""

Progress = Callable[[int, int], None]
"""Called with the requests finished so far and all of them."""


class Chooser(Protocol):
    """Says where a request goes, when it is due."""

    def pick(self, row: int) -> int:
        """The server of row `row`, an index of the addresses."""

    def ended(self, server: int) -> None:
        """A request there has ended."""


class Given:
    """Decisions made beforehand."""

    def __init__(self, instance: np.ndarray) -> None:
        self._instance = instance

    def pick(self, row: int) -> int:
        """See `Chooser`."""
        return int(self._instance[row])

    def ended(self, server: int) -> None:
        """See `Chooser`."""


class TakingTurns:
    """One server after the other."""

    def __init__(self, servers: int) -> None:
        self._servers, self._sent = servers, 0

    def pick(self, row: int) -> int:
        """See `Chooser`."""
        self._sent += 1
        return (self._sent - 1) % self._servers

    def ended(self, server: int) -> None:
        """See `Chooser`."""


class FewestOutstanding:
    """The server with the fewest requests under way, the first of equals."""

    def __init__(self, servers: int) -> None:
        self._under_way = [0] * servers

    def pick(self, row: int) -> int:
        """See `Chooser`."""
        server = self._under_way.index(min(self._under_way))
        self._under_way[server] += 1
        return server

    def ended(self, server: int) -> None:
        """See `Chooser`."""
        self._under_way[server] -= 1


@dataclasses.dataclass(frozen=True)
class Load:
    """N requests, ready to be sent.

    Attributes:
      table: the requests.
      bodies: [N] their JSON.
      due_s: [N] float64, when each is sent, on the table's clock.
      headers: [N] further ones of each; none by default.
    """

    table: RequestTable
    bodies: Sequence[bytes]
    due_s: np.ndarray
    headers: Sequence[Mapping[str, str]] | None = None


@dataclasses.dataclass(frozen=True)
class LiveRun:
    """What a replay measured.

    Attributes:
      result: the requests' records, on the table's clock, as of a simulation; what no client sees (when an engine
        started a request, how often it preempted it) is NaN.
      late_s: [N] float64, how much later than it was due each request was sent.
      backends: [N] the server that each request got, as `jaxroute serve` names it; empty texts without such a router.
      origin: `time.perf_counter` at the table's time zero.
    """

    result: RunResult
    late_s: np.ndarray
    backends: tuple[str, ...]
    origin: float

    @property
    def is_late(self) -> bool:
        """Whether the client was too slow for its own schedule."""
        return float(np.percentile(self.late_s, 99)) > LATE_P99_S


def make_load(table: RequestTable, model: str, due_s: np.ndarray, seed: int | None = None) -> Load:
    """Random prompts of the table's lengths, never seen before unless a seed is given."""
    prompts = random_prompts(table.prompt_tokens, seed)
    asked = zip(prompts, table.output_tokens.tolist(), strict=True)
    return Load(table, [completion_body(model, prompt, output) for prompt, output in asked], due_s)


async def replay(
    session: aiohttp.ClientSession,
    urls: Sequence[str],
    load: Load,
    chooser: Chooser,
    *,
    name: str,
    progress: Progress | None = None,
) -> LiveRun:
    """Sends every request at its time and waits for all answers.

    Args:
      session: of `open_session`.
      urls: the servers.
      load: the requests.
      chooser: says where each goes.
      name: of the run.
      progress: called now and then.

    Raises:
      LiveError: a request failed; those under way are given up.
    """
    table = load.table
    instance, handed_s = np.zeros(len(table), np.int64), np.zeros(len(table))
    answers: list[Completion | None] = [None] * len(table)
    finished = 0

    async def send(row: int, server: int) -> None:
        nonlocal finished
        headers = None if load.headers is None else load.headers[row]
        output_tokens = int(table.output_tokens[row])
        try:
            answers[row] = await stream_completion(session, urls[server], load.bodies[row], output_tokens, headers)
        finally:
            chooser.ended(server)
        finished += 1
        if progress is not None:
            progress(finished, len(table))

    with _no_collection(), _punctual():
        origin = time.perf_counter() + LEAD_S - float(load.due_s.min())
        try:
            async with asyncio.TaskGroup() as group:
                for row in np.argsort(load.due_s, kind="stable").tolist():
                    await _until(origin + float(load.due_s[row]))
                    handed_s[row] = time.perf_counter() - origin
                    instance[row] = chooser.pick(row)
                    group.create_task(send(row, int(instance[row])))
        except* LiveError as failed:
            raise _first(failed) from failed
    done = [answer for answer in answers if answer is not None]
    result = RunResult(
        policy=name,
        table=table,
        records=_records(done, instance, handed_s, origin),
        frontend_s=np.zeros(len(urls)),
        dt_s=0.0,
    )
    return LiveRun(result, handed_s - load.due_s, tuple(answer.backend for answer in done), origin)


def _records(
    answers: Sequence[Completion], instance: np.ndarray, handed_s: np.ndarray, origin: float
) -> RequestRecords:
    unknown = np.full(len(answers), np.nan)
    return RequestRecords(
        instance=instance,
        dispatch_s=handed_s,
        start_s=unknown,
        first_token_s=np.asarray([answer.token_s[0] for answer in answers]) - origin,
        finish_s=np.asarray([answer.token_s[-1] for answer in answers]) - origin,
        max_gap_s=np.asarray([np.diff(answer.token_s).max(initial=0.0) for answer in answers]),
        preemptions=unknown,
        recomputed_tokens=unknown,
    )


async def _until(due: float) -> None:
    """Returns at a time of `time.perf_counter`, to a fraction of a millisecond; others run meanwhile."""
    rest = due - time.perf_counter()
    if rest > SPIN_S:
        await asyncio.sleep(rest - SPIN_S)
    while time.perf_counter() < due:
        await asyncio.sleep(0)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No pauses for garbage."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def _punctual() -> Iterator[None]:
    """Runs this thread in the real-time class; where that is not permitted, as it was."""
    try:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except (OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _first(group: BaseExceptionGroup[LiveError]) -> LiveError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LiveError)
    return error
