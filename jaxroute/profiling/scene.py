"""Series of requests that make a server run steps of known content.

With a *probe*, one streamed request that decodes all the while, so that each of its tokens marks the end of a step: a
batch decodes beside it, of which one after the other ends, and prompts come in between, whose steps the probe sees.
Without a probe: prompts alone. A group of prompts is sent while a *blocker*, a longer prompt, is computed, so that all
of the group are waiting when the next step begins, and what that step computes is known.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from jaxroute.profiling.client import Answer, Server, Ticks

PROBE_TOKENS = 16
"""Prompt tokens of the probe."""

REST = 6
"""Tokens of the probe between the end of an injection and the next one: decode steps, which are measured too."""

LAST_TOKENS = 7
"""Output tokens of the last prompts at an idle server."""

SENT_BY = 0.3
"""Share of the blocker's time after which the group is sent: in the step behind it, whatever the front end adds."""


@dataclasses.dataclass(frozen=True)
class Injection:
    """Prompts that make one output token each; the last ones at an idle server make some.

    Attributes:
      blocker: tokens of the prompt that goes ahead.
      group: tokens of those that wait for its end.
    """

    blocker: int
    group: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.blocker + sum(self.group)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A batch that shrinks, and what comes in meanwhile.

    Attributes:
      name, part: of the steps that come of it.
      prompt_tokens: of each request of the batch.
      output_tokens: [batch], of each.
      probe_output: output tokens that the probe needs.
      injections: in their order.
    """

    name: str
    part: str
    prompt_tokens: int
    output_tokens: tuple[int, ...]
    probe_output: int
    injections: tuple[Injection, ...]


@dataclasses.dataclass(frozen=True)
class Injected:
    """Answers of an injection."""

    blocker: Answer
    group: tuple[Answer, ...]


@dataclasses.dataclass(frozen=True)
class Played:
    """Answers of a scene.

    Attributes:
      probe, batch, injected: those.
      settled_s: when all prompts of the batch had been computed.
    """

    probe: Answer
    batch: tuple[Answer, ...]
    injected: tuple[Injected, ...]
    settled_s: float


@dataclasses.dataclass(frozen=True)
class Pace:
    """What the warm-up has found: about how long things take, to send groups at the right time.

    Attributes:
      prompt_ms: TTFT of a prompt at an idle server, less `token_ms` for each of its tokens.
      token_ms: of a prompt token.
      decode_ms: a step that only decodes.
    """

    prompt_ms: float
    token_ms: float
    decode_ms: float

    def wait_s(self, blocker: int, gap_ms: float) -> float:
        """From sending a blocker to sending its group, where steps take `gap_ms` meanwhile."""
        return (gap_ms + SENT_BY * (self.prompt_ms + self.token_ms * blocker)) / 1e3


async def play(server: Server, scene: Scene, pace: Pace) -> Played:
    """Plays a scene.

    Raises:
      InputError: the server fails.
    """
    ticks = Ticks()
    probe = asyncio.create_task(server.ask(PROBE_TOKENS, scene.probe_output, ticks))
    tasks: list[asyncio.Task[Answer]] = [probe]
    try:
        await ticks.reach(2)
        batch = [asyncio.create_task(server.ask(scene.prompt_tokens, output)) for output in scene.output_tokens]
        tasks += batch
        settled_s = await _settled(server, ticks)
        injected = []
        for injection in scene.injections:
            if not await ticks.reach(len(ticks.times) + REST) or probe.done():
                break
            injected.append(await inject(server, injection, pace, ticks))
        answers = await asyncio.gather(*batch)
        return Played(await probe, tuple(answers), tuple(injected), settled_s)
    finally:
        await _drop(tasks)


async def inject(server: Server, injection: Injection, pace: Pace, ticks: Ticks | None = None) -> Injected:
    """Sends a blocker, and its group while it is computed.

    At an idle server the last prompts go on to make some tokens, whose times say better than the first one's alone when
    their step ended.

    Raises:
      InputError: the server fails.
    """
    gap_ms = 0.0
    if ticks is not None and len(ticks.times) > 1:
        gap_ms = 1e3 * (ticks.times[-1] - ticks.times[-2])
        gap_ms = gap_ms if gap_ms == gap_ms else pace.decode_ms
    last_tokens = LAST_TOKENS if ticks is None else 1
    blocker = asyncio.create_task(server.ask(injection.blocker, 1 if injection.group else last_tokens, Ticks()))
    tasks = [blocker]
    try:
        if injection.group:
            await asyncio.sleep(pace.wait_s(injection.blocker, gap_ms))
        tasks += [asyncio.create_task(server.ask(tokens, last_tokens, Ticks())) for tokens in injection.group]
        first, *rest = await asyncio.gather(*tasks)
        return Injected(first, tuple(rest))
    finally:
        await _drop(tasks)


async def warm_up(server: Server, longest: int, most: int) -> Pace:
    """Has the server compile what it compiles lazily, and finds its pace.

    Args:
      server: idle.
      longest: prompt tokens that fit into a step.
      most: sequences that may run at once.

    Raises:
      InputError: the server fails.
    """
    short, long = max(1, longest // 16), longest
    await asyncio.gather(*(server.ask(short, 8) for _ in range(max(1, min(most, 16)))))
    times: dict[int, float] = {}
    for tokens in (short, long, short, long, short):
        answer = await server.ask(tokens, 1, Ticks())
        times[tokens] = min(times.get(tokens, float("inf")), 1e3 * answer.ttft_s)
    answer = await server.ask(short, 12, Ticks())
    decode_ms = 1e3 * (answer.end_s - float(answer.token_s[0])) / 11
    token_ms = max(0.0, times[long] - times[short]) / max(1, long - short)
    return Pace(max(0.0, times[short] - token_ms * short), token_ms, decode_ms)


async def _settled(server: Server, ticks: Ticks) -> float:
    """Waits until the batch is computed, and says when that was.

    Requests are served in their order, so one that is sent last tells of all before it; a second one, of those that the
    first overtook on its way in.
    """
    await ticks.reach(len(ticks.times) + 3)
    await server.ask(PROBE_TOKENS, 1)
    return (await server.ask(PROBE_TOKENS, 1)).end_s


async def _drop(tasks: Sequence[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
