"""A small fake vLLM for the tests: real HTTP, real streams, vLLM's metric names, step time from a profile, faults."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from typing import Any

from aiohttp import web

from jaxroute.profiles import StepProfile, load_profile

MODEL = "fake-model"

FAULTS = ("close", "hang", "slow", "500", "503", "429", "cut", "cut-inside-event", "stall", "garbage-metrics")
"""What can be asked of a server: `close` closes the connection before the first byte, `hang` never answers, `slow`
sends its headers late, `cut` dies in mid-stream, `stall` goes silent there, `cut-inside-event` tears an event apart."""

SLOW_S = 0.3


@dataclasses.dataclass
class Running:
    """A request within the engine."""

    prompt_tokens: int
    output_tokens: int
    made: asyncio.Queue[int]
    done: int = 0


class Engine:
    """Prefills whoever came in, one token of everybody a step, held to a profile's step time."""

    def __init__(self, profile: StepProfile, speed: float) -> None:
        self.profile, self.speed = profile, speed
        self.running: list[Running] = []
        self.waiting: list[Running] = []
        self._wake = asyncio.Event()

    def add(self, request: Running) -> None:
        self.waiting.append(request)
        self._wake.set()

    def remove(self, request: Running) -> None:
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)

    def kv_tokens(self) -> int:
        return sum(request.prompt_tokens + request.done for request in self.running)

    async def run(self) -> None:
        while True:
            if not self.running and not self.waiting:
                self._wake.clear()
                await self._wake.wait()
            room = self.profile.max_num_seqs - len(self.running)
            new, self.waiting = self.waiting[:room], self.waiting[room:]
            decoding = [request.prompt_tokens + request.done for request in self.running]
            self.running += new
            step_ms = self.profile.step_ms([(request.prompt_tokens, 0) for request in new], decoding)
            await asyncio.sleep(step_ms / 1e3 / self.speed)
            for request in list(self.running):
                request.done += 1
                request.made.put_nowait(request.done)
                if request.done >= request.output_tokens:
                    self.running.remove(request)


class FakeVllm:
    """One server. `async with FakeVllm() as server:` starts it on a port that the OS chooses."""

    def __init__(
        self,
        *,
        profile: str = "h100-80gb-llama31-8b",
        speed: float = 20.0,
        keep_alive_s: float = 5.0,
        key: str | None = None,
        model: str = MODEL,
        tokens_a_chunk: int = 1,
        port: int = 0,
    ) -> None:
        self.profile, self.speed = load_profile(profile), speed
        self.keep_alive_s, self.key, self.model, self.tokens_a_chunk = keep_alive_s, key, model, tokens_a_chunk
        self.port = port
        self.fault: str | None = None
        self.fault_times: int | None = None
        self.healthy = True
        self.ssl: Any = None
        self.seen: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.aborted = 0
        self.scrapes = 0
        self.counts = {"prompt": 0, "generation": 0}
        self._held: set[asyncio.Event] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.ssl else 'http'}://127.0.0.1:{self.port}"

    def break_with(self, fault: str | None, times: int | None = None) -> None:
        """Makes requests of inference fail, all or the next few of them."""
        assert fault is None or fault in FAULTS
        self.fault, self.fault_times = fault, times

    async def __aenter__(self) -> FakeVllm:
        await self.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.engine = Engine(self.profile, self.speed)
        self._loop_task = asyncio.create_task(self.engine.run())
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/v1/completions", self._inference)
        app.router.add_post("/v1/chat/completions", self._inference)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(
            app, keepalive_timeout=self.keep_alive_s, handler_cancellation=True, access_log=None, shutdown_timeout=0.05
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.ssl, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """As when the process is killed: whatever is under way is cut off."""
        for event in self._held:
            event.set()
        self._loop_task.cancel()
        for connection in list(self._runner.server.connections if self._runner.server else ()):
            if connection.transport is not None:
                connection.transport.abort()
        await self._runner.cleanup()

    def _fault(self) -> str | None:
        fault = self.fault
        if fault is not None and self.fault_times is not None:
            self.fault_times -= 1
            if self.fault_times <= 0:
                self.fault = None
        return fault

    async def _hold(self) -> None:
        event = asyncio.Event()
        self._held.add(event)
        try:
            await event.wait()
        finally:
            self._held.discard(event)

    async def _inference(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.seen.append(request)
        self.bodies.append(raw)
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        fault = self._fault()
        if fault == "close" and request.transport is not None:
            request.transport.abort()
            return web.Response()
        if fault == "hang":
            await self._hold()
        if fault == "slow":
            await asyncio.sleep(SLOW_S)
        if fault in ("500", "503", "429"):
            return web.json_response({"error": {"message": "fault", "code": int(fault)}}, status=int(fault))
        body = json.loads(raw)
        chat = request.path.endswith("chat/completions")
        text = json.dumps(body["messages"]) if chat else str(body["prompt"])
        ids = None if chat or not isinstance(body["prompt"], list) else body["prompt"]
        tokens = max(1, len(text) // 4) if ids is None else len(ids)
        asked = Running(tokens, int(body.get("max_tokens") or 16), asyncio.Queue())
        self.engine.add(asked)
        self.counts["prompt"] += asked.prompt_tokens
        try:
            if body.get("stream"):
                return await self._stream(request, body, asked, chat, fault)
            for _ in range(asked.output_tokens):
                await asked.made.get()
            if fault in ("cut", "stall"):
                return await self._half_an_answer(request, fault)
            return web.json_response(whole(self.model, asked, chat))
        except asyncio.CancelledError:
            self.aborted += 1
            raise
        finally:
            self.counts["generation"] += asked.done
            self.engine.remove(asked)

    async def _half_an_answer(self, request: web.Request, fault: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"id":')
        if fault == "stall":
            await self._hold()
        assert request.transport is not None
        request.transport.close()
        return response

    async def _stream(
        self, request: web.Request, body: dict[str, Any], asked: Running, chat: bool, fault: str | None
    ) -> web.StreamResponse:
        options = body.get("stream_options") or {}
        usage, continuous = options.get("include_usage", False), options.get("continuous_usage_stats", False)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        index, sent = 0, 0
        while index < asked.output_tokens:
            index = await asked.made.get()
            if index % self.tokens_a_chunk and index < asked.output_tokens:
                continue
            stats = used(asked, index) if continuous else None
            last = index >= asked.output_tokens
            event = event_of(chunk(self.model, self.words(sent, index), chat, last, stats, with_usage=usage))
            sent = index
            if fault in ("cut", "cut-inside-event", "stall") and index * 2 >= asked.output_tokens:
                await self._die(request, response, event, fault)
                return response
            await response.write(event)
        if usage:
            final = chunk(self.model, None, chat, False, used(asked, asked.output_tokens), with_usage=True)
            await response.write(event_of(final))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _die(self, request: web.Request, response: web.StreamResponse, event: bytes, fault: str) -> None:
        assert request.transport is not None
        if fault == "stall":
            await self._hold()
        if fault == "cut-inside-event":
            await response.write(event[: len(event) // 2])
            await asyncio.sleep(0.02)
        request.transport.close()

    @staticmethod
    def words(start: int, end: int) -> str:
        return "".join(f" w{number}é" for number in range(start, end))

    async def _embeddings(self, request: web.Request) -> web.Response:
        self.seen.append(request)
        self.bodies.append(await request.read())
        return web.json_response({"object": "list", "data": [{"embedding": [0.5], "index": 0}]})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "object": "list",
                "data": [{"id": self.model, "object": "model", "owned_by": "vllm", "max_model_len": 4096}],
            }
        )

    async def _health(self, request: web.Request) -> web.Response:
        if self.fault == "hang":
            await self._hold()
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        self.scrapes += 1
        if self.fault == "hang":
            await self._hold()
        if self.fault == "garbage-metrics":
            return web.Response(body=b"\xff\xfe{not metrics}\nvllm:num_requests_running NaN-ish\n" + b"x" * 1000)
        return web.Response(text=self.metrics_text(), content_type="text/plain")

    def metrics_text(self) -> str:
        engine, profile = self.engine, self.profile
        labels = f'engine="0",model_name="{self.model}"'
        used_kv = engine.kv_tokens() / profile.kv_tokens
        config = f'block_size="{profile.block_size}",engine="0",num_gpu_blocks="{profile.kv_blocks + 1}"'
        return "\n".join(
            (
                "# HELP vllm:num_requests_running Number of requests in model execution batches.",
                "# TYPE vllm:num_requests_running gauge",
                f"vllm:num_requests_running{{{labels}}} {float(len(engine.running))}",
                "# TYPE vllm:num_requests_waiting gauge",
                f"vllm:num_requests_waiting{{{labels}}} {float(len(engine.waiting))}",
                "# TYPE vllm:kv_cache_usage_perc gauge",
                f"vllm:kv_cache_usage_perc{{{labels}}} {used_kv:.6f}",
                "# TYPE vllm:cache_config_info gauge",
                f"vllm:cache_config_info{{{config}}} 1.0",
                f"vllm:num_preemptions_total{{{labels}}} 0.0",
                f"vllm:prompt_tokens_total{{{labels}}} {float(self.counts['prompt'])}",
                f"vllm:generation_tokens_total{{{labels}}} {float(self.counts['generation'])}",
                "",
            )
        )


def prompt_tokens(body: dict[str, Any]) -> int:
    """Of token ids, how many there are; of a text, one for four characters."""
    prompt = body.get("messages") or body["prompt"]
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        return len(prompt)
    return max(1, len(prompt if isinstance(prompt, str) else json.dumps(prompt)) // 4)


def used(asked: Running, done: int) -> dict[str, int]:
    """The `usage` of an answer that is `done` tokens long so far."""
    prompt = asked.prompt_tokens
    return {"prompt_tokens": prompt, "completion_tokens": done, "total_tokens": prompt + done}


def chunk(
    model: str, text: str | None, chat: bool, last: bool, usage: dict[str, int] | None, *, with_usage: bool
) -> dict[str, Any]:
    """One chunk of a stream, as vLLM words it; `text` None: the chunk of the usage alone."""
    finish = "length" if last else None
    content: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
    choices = [] if text is None else [{"index": 0, **content, "logprobs": None, "finish_reason": finish}]
    kind = "chat.completion.chunk" if chat else "text_completion"
    data = {"id": "cmpl-0", "object": kind, "created": 0, "model": model, "choices": choices}
    return {**data, "usage": usage} if with_usage or usage else data


def whole(model: str, asked: Running, chat: bool) -> dict[str, Any]:
    """An answer that is not streamed."""
    text = FakeVllm.words(0, asked.output_tokens)
    content: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "cmpl-0",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [{"index": 0, **content, "finish_reason": "length"}],
        "usage": used(asked, asked.output_tokens),
    }


def event_of(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
