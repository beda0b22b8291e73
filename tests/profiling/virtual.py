"""A server of a profile's speed in virtual time: nothing waits, and every run is the same."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import numpy as np
from profiled_vllm import FilledSteps

from fake_vllm import Running
from jaxroute.profiles import StepProfile
from jaxroute.profiling.client import Answer, Server, Ticks

Result = TypeVar("Result")


class _Leap(selectors.SelectSelector):
    """Leaps over whatever the loop would wait for."""

    leapt_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.leapt_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when everything waits."""

    def __init__(self) -> None:
        self.leap = _Leap()
        super().__init__(self.leap)

    def time(self) -> float:
        return self.leap.leapt_s


def run_virtually(job: Callable[[], Awaitable[Result]]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(job())  # type: ignore[arg-type]


class VirtualSteps(FilledSteps):
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def hold_until(self, when: float) -> None:
        await asyncio.sleep(when - self.now())


class VirtualServer(Server):
    """Answers like `Server`, from an engine within; its tokens are late by a random time, exponential in `late_ms`."""

    def __init__(
        self,
        profile: StepProfile,
        *,
        chunked: bool = True,
        late_ms: float = 0.0,
        frontend_ms: float = 8.0,
        seed: int = 0,
    ) -> None:
        super().__init__(None, "http://virtual")  # type: ignore[arg-type]
        self.engine = VirtualSteps(profile, chunked=chunked)
        self.late_s, self.frontend_s = late_ms / 1e3, frontend_ms / 1e3
        self.rng = np.random.default_rng(seed)
        self._task: asyncio.Task[None] | None = None

    async def ask(self, prompt_tokens: int, output_tokens: int, ticks: Ticks | None = None) -> Answer:
        if self._task is None:
            self._task = asyncio.create_task(self.engine.run())
        loop = asyncio.get_running_loop()
        sent_s = loop.time()
        await asyncio.sleep(self.frontend_s / 2 + self.late_s * self.rng.exponential() / 4)
        request = Running(prompt_tokens, output_tokens, asyncio.Queue())
        self.engine.add(request)
        try:
            token_s = np.full(output_tokens, np.nan)
            for index in range(output_tokens):
                await request.made.get()
                came_s = loop.time() + self.frontend_s / 2 + self.late_s * self.rng.exponential()
                token_s[index] = max(came_s, token_s[index - 1]) if index else came_s
                if ticks is not None:
                    ticks.add(float(token_s[index]), index + 1)
            if ticks is None:
                token_s[:-1] = np.nan
            return Answer(prompt_tokens, output_tokens, sent_s, token_s)
        finally:
            self.engine.remove(request)
            if ticks is not None:
                ticks.end()
