"""The fake vLLM with vLLM's own way of filling a step: a token budget, chunks or whole prompts, arrival order."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from fake_vllm import Engine, FakeVllm, Running
from jaxroute.profiles import StepProfile


class FilledSteps(Engine):
    """Steps as design.md's `chunked` and `whole-prompt` have them; the KV cache is taken to suffice."""

    def __init__(self, profile: StepProfile, *, chunked: bool) -> None:
        super().__init__(profile, 1.0)
        self.chunked = chunked
        self.computed: dict[int, int] = {}
        self.steps: list[tuple[list[tuple[int, int]], list[int]]] = []

    async def run(self) -> None:
        while True:
            if not self.running and not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            begin = self.now()
            prefills, decoding, ending = self._scheduled()
            self.steps.append((prefills, decoding))
            await self.hold_until(begin + self.profile.step_ms(prefills, decoding) / 1e3)
            for request in ending:
                request.done += 1
                request.made.put_nowait(request.done)
                if request.done >= request.output_tokens and request in self.running:
                    self.running.remove(request)

    def now(self) -> float:
        return time.perf_counter()

    async def hold_until(self, when: float) -> None:
        """Sleeps, to a tenth of a millisecond: the event loop's own clock is coarser."""
        left = when - time.perf_counter()
        if left > 0.002:
            await asyncio.sleep(left - 0.0015)
        while time.perf_counter() < when:
            await asyncio.sleep(0)

    def _scheduled(self) -> tuple[list[tuple[int, int]], list[int], list[Running]]:
        room = self.profile.max_num_batched_tokens
        prefills: list[tuple[int, int]] = []
        decoding: list[int] = []
        ending: list[Running] = []
        for request in self.running:
            left = request.prompt_tokens - self.computed[id(request)]
            if left <= 0:
                decoding.append(request.prompt_tokens + request.done)
                ending.append(request)
                room -= 1
            elif room > 0:
                self._chunk(request, min(left, room), prefills, ending)
                room -= prefills[-1][0]
        while self.waiting and len(self.running) < self.profile.max_num_seqs and room > 0:
            request = self.waiting[0]
            if not self.chunked and request.prompt_tokens > room:
                break
            self.running.append(self.waiting.pop(0))
            self.computed[id(request)] = 0
            self._chunk(request, min(request.prompt_tokens, room), prefills, ending)
            room -= prefills[-1][0]
        return prefills, decoding, ending

    def _chunk(self, request: Running, new: int, prefills: list[tuple[int, int]], ending: list[Running]) -> None:
        done = self.computed[id(request)]
        prefills.append((new, done))
        self.computed[id(request)] = done + new
        if done + new == request.prompt_tokens:
            ending.append(request)


class ProfiledVllm(FakeVllm):
    """A server whose steps are as long as a profile says, and whose answers take a moment longer."""

    def __init__(
        self, profile: StepProfile, *, chunked: bool = True, frontend_s: float = 0.0, **options: object
    ) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.profile, self.chunked, self.frontend_s = profile, chunked, frontend_s

    async def start(self) -> None:
        await super().start()
        self._loop_task.cancel()
        self.engine = FilledSteps(self.profile, chunked=self.chunked)
        self._loop_task = asyncio.create_task(self.engine.run())

    async def _inference(self, request: web.Request) -> web.StreamResponse:
        if self.frontend_s:
            await asyncio.sleep(self.frontend_s)
        return await super()._inference(request)
