"""The reference: design.md section 3 as a plain-Python event simulator in float64, one request at a time.

The JAX simulator is judged against it, request by request, so it follows vLLM's own walk over its queues and shares
neither code nor closed forms with `jaxroute.cluster`. Times are seconds; only the step-time formula is in milliseconds.
"""

import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

TIE_S = 1e-9  # two times closer than this are equal

SCHEDULERS = ("prefill-first", "chunked", "whole-prompt")
# Waiting requests that were never admitted are in ascending order of this key, ties in dispatch order.
BATCHING_KEYS = {
    "fcfs": lambda request: 0,
    "least-work-left": lambda request: request.total - request.known,
    "bin-packing": lambda request: request.known - request.total,
}


@dataclass(frozen=True)
class RefRequest:
    """One request of the workload."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self):
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"a request has at least one prompt and one output token: {self}")


@dataclass(frozen=True)
class RefInstance:
    """One engine: its step-time coefficients `W, h, g, d, e, f, x, u, v` and its limits."""

    coefficients_ms: dict[str, float]
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    scheduler: str
    batching: str = "fcfs"

    def __post_init__(self):
        if self.scheduler not in SCHEDULERS or self.batching not in BATCHING_KEYS:
            raise ValueError(f"unknown scheduler {self.scheduler!r} or batching {self.batching!r}")


@dataclass
class RefRecord:
    """What happened to one request; `start_s` is the start of the step that first admitted it."""

    instance: int = -1
    dispatch_s: float = math.nan
    start_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    max_gap_s: float = 0.0
    preemptions: int = 0
    recomputed_tokens: int = 0


@dataclass(frozen=True)
class RefResult:
    """Records by request; by instance, what happened to its requests and the steps that it ran, both in order."""

    records: list[RefRecord]
    # (kind, request_index, time_s), kind one of "admit", "first", "finish", "preempt".
    events: list[list[tuple[str, int, float]]]
    # (start_s, duration_s, prefill_tokens, decode_seqs, preemptions, admissions)
    steps: list[list[tuple[float, float, int, int, int, int]]]


@dataclass(slots=True, eq=False)
class _Sequence:
    """A dispatched request inside its engine."""

    index: int
    record: RefRecord
    known: int  # prompt + generated tokens
    total: int  # prompt + output tokens
    kv: int = 0  # tokens in the KV cache, those of the step in progress included
    blocks: int = 0
    prefill_until: int = 0  # it decodes once `kv` has reached this
    last_token_s: float = math.nan


@dataclass(slots=True)
class _Step:
    """An engine step in the making: the sums of the step-time formula, and who gets a token at its end."""

    start_s: float
    prefill_tokens: int = 0
    prefill_squares: int = 0
    prefill_products: int = 0
    decode_seqs: int = 0
    decode_context: int = 0
    preemptions: int = 0
    admissions: int = 0
    emitting: list[_Sequence] = field(default_factory=list)

    def add(self, request: _Sequence, tokens: int) -> None:
        """Computes `tokens` of a request, whose blocks are there already."""
        if request.kv < request.prefill_until:
            self.prefill_tokens += tokens
            self.prefill_squares += tokens * tokens
            self.prefill_products += tokens * request.kv
        else:
            self.decode_seqs += 1
            self.decode_context += request.kv + 1
        request.kv += tokens
        if request.kv == request.known:
            self.emitting.append(request)

    def duration_s(self, c: dict[str, float]) -> float:
        """The step-time formula of design.md."""
        p, n = self.prefill_tokens, self.decode_seqs
        milliseconds = max(c["W"], c["h"] + c["g"] * (p + n)) + c["d"] * self.decode_context + c["e"] * n
        milliseconds += c["f"] * self.prefill_squares + c["x"] * self.prefill_products
        milliseconds += c["u"] * (p > 0) + c["v"] * (n > 0)
        return milliseconds / 1000


def blocks_of(tokens: int, block_size: int) -> int:
    """Blocks that hold the tokens: the quotient rounded up."""
    return -(-tokens // block_size)


class _Engine:
    """One instance: its queues, its blocks, and the step in progress (none while it is idle)."""

    def __init__(self, config: RefInstance):
        self.config = config
        self.key = BATCHING_KEYS[config.batching]
        self.watermark = config.kv_blocks // 100 if config.scheduler == "prefill-first" else 0
        self.free = config.kv_blocks
        self.in_flight_tokens = 0
        self.running: list[_Sequence] = []
        self.preempted: list[_Sequence] = []  # the front of the waiting queue; its head is the last element
        self.waiting: list[_Sequence] = []  # never admitted yet, in batching order
        self.step: _Step | None = None
        self.step_end_s = math.nan
        self.events: list[tuple[str, int, float]] = []
        self.steps: list[tuple[float, float, int, int, int, int]] = []

    def dispatch(self, request: _Sequence, now_s: float) -> None:
        """Takes a new request; an idle engine starts with it at once."""
        self.in_flight_tokens += request.known
        insort(self.waiting, request, key=self.key)
        if self.step is None:
            self.start_step(now_s)

    def advance(self, until_s: float) -> None:
        """Runs the steps that end before `until_s`; one that ends at that very time has to wait for a dispatch."""
        while self.step is not None and self.step_end_s < until_s - TIE_S:
            self.end_step()
            if self.running or self.preempted or self.waiting:
                self.start_step(self.step_end_s)

    def start_step(self, now_s: float) -> None:
        """Schedules one step and allocates its blocks."""
        self.step = step = _Step(now_s)
        budget = self.config.max_num_batched_tokens
        if self.config.scheduler == "prefill-first":
            self.admit(budget)
            if not step.admissions:
                self.walk_running(len(self.running))
        else:
            budget = self.walk_running(budget)
            if not step.preemptions:
                self.admit(budget)
        if step.prefill_tokens + step.decode_seqs == 0:
            stuck = (self.preempted[::-1] + self.waiting)[0]
            raise ValueError(f"deadlock at {now_s} s: request {stuck.index} can never run with {stuck.known} tokens")
        duration_s = step.duration_s(self.config.coefficients_ms)
        self.step_end_s = now_s + duration_s
        counts = (step.prefill_tokens, step.decode_seqs, step.preemptions, step.admissions)
        self.steps.append((now_s, duration_s, *counts))

    def walk_running(self, budget: int) -> int:
        """Gives the running requests their tokens, in running order; returns what is left of the budget."""
        running, step, block_size = self.running, self.step, self.config.block_size
        position = 0
        # A preemption shortens `running` from its end, at most down to the request that asks.
        while budget and position < len(running):
            request = running[position]
            tokens = min(request.known - request.kv, budget)
            lacking = request.kv + tokens - request.blocks * block_size
            if lacking > 0 and not self.make_room(request, blocks_of(lacking, block_size)):
                break
            step.add(request, tokens)
            budget -= tokens
            position += 1
        return budget

    def make_room(self, request: _Sequence, blocks: int) -> bool:
        """Allocates blocks to a running request, preempting from the end; False if that hit the request itself."""
        while self.free < blocks:
            victim = self.running.pop()
            self.preempted.append(victim)
            self.step.preemptions += 1
            self.events.append(("preempt", victim.index, self.step.start_s))
            victim.record.preemptions += 1
            victim.record.recomputed_tokens += victim.kv
            self.free += victim.blocks
            victim.kv = victim.blocks = 0
            if victim is request:
                return False
        self.free -= blocks
        request.blocks += blocks
        return True

    def admit(self, budget: int) -> None:
        """Admits preempted requests, then new ones, until one does not fit; bin packing skips new ones instead."""
        while self.preempted:
            if not self.fits(self.preempted[-1], budget):
                return
            budget -= self.start_prefill(self.preempted.pop(), budget)
        # One pass is enough for bin packing: what did not fit once fits even less after further admissions.
        position = 0
        while budget and position < len(self.waiting) and len(self.running) < self.config.max_num_seqs:
            if self.fits(self.waiting[position], budget):
                budget -= self.start_prefill(self.waiting.pop(position), budget)
            elif self.config.batching == "bin-packing":
                position += 1
            else:
                return

    def fits(self, request: _Sequence, budget: int) -> bool:
        """Whether sequences, token budget and free blocks (for all known tokens) allow an admission."""
        tokens_now = 1 if self.config.scheduler == "chunked" else request.known
        free_after = self.free - blocks_of(request.known, self.config.block_size)
        return len(self.running) < self.config.max_num_seqs and tokens_now <= budget and free_after >= self.watermark

    def start_prefill(self, request: _Sequence, budget: int) -> int:
        """Starts or resumes a request that fits; returns the tokens that it computes in this step."""
        tokens = min(request.known, budget)
        request.prefill_until = request.known
        request.blocks = blocks_of(tokens, self.config.block_size)
        self.free -= request.blocks
        self.running.append(request)
        self.step.admissions += 1
        self.step.add(request, tokens)
        self.events.append(("admit", request.index, self.step.start_s))
        if math.isnan(request.record.start_s):
            request.record.start_s = self.step.start_s
        return tokens

    def end_step(self) -> None:
        """Emits the tokens of the step in progress; finished requests leave."""
        end_s, emitting = self.step_end_s, self.step.emitting
        self.step = None
        self.in_flight_tokens += len(emitting)
        for request in emitting:
            request.known += 1
            record = request.record
            if math.isnan(request.last_token_s):
                record.first_token_s = end_s
                self.events.append(("first", request.index, end_s))
            elif end_s - request.last_token_s > record.max_gap_s:
                record.max_gap_s = end_s - request.last_token_s
            request.last_token_s = end_s
            if request.known == request.total:
                record.finish_s = end_s
                self.in_flight_tokens -= request.total
                self.free += request.blocks
                self.running.remove(request)
                self.events.append(("finish", request.index, end_s))


class RefFleet:
    """What a router may ask at a tick about instance `i`; blocks as the step in progress has allocated them."""

    def __init__(self, engines: list[_Engine]):
        self._engines = engines

    def running(self, i: int) -> int:
        return len(self._engines[i].running)

    def waiting(self, i: int) -> int:
        return len(self._engines[i].preempted) + len(self._engines[i].waiting)

    def in_flight(self, i: int) -> int:
        return self.running(i) + self.waiting(i)

    def used_blocks(self, i: int) -> int:
        return self._engines[i].config.kv_blocks - self._engines[i].free

    def in_flight_tokens(self, i: int) -> int:
        return self._engines[i].in_flight_tokens

    def awaiting_first(self, i: int) -> int:
        engine = self._engines[i]
        return sum(math.isnan(r.last_token_s) for r in (*engine.running, *engine.preempted, *engine.waiting))


def simulate(
    requests: Sequence[RefRequest],
    instances: Sequence[RefInstance],
    router: Callable[[RefFleet, int, int], int | None],
    dt: float,
) -> RefResult:
    """Serves all requests; at each tick `k * dt` the router places the head of its FCFS queue, or holds it (None).

    Raises:
        ValueError: an engine cannot go on, or the router names an instance that is not there.
    """
    engines = [_Engine(instance) for instance in instances]
    fleet = RefFleet(engines)
    records = [RefRecord() for _ in requests]
    tick = 0
    for index in sorted(range(len(requests)), key=lambda index: requests[index].arrival_s):
        request, record = requests[index], records[index]
        # The first tick that sees the request; an earlier one finds the queue empty.
        tick = max(tick, math.ceil((request.arrival_s - TIE_S) / dt))
        choice = None
        while choice is None:
            now_s = tick * dt
            for engine in engines:
                engine.advance(now_s)
            choice = router(fleet, tick, index)
            tick += 1
        if not 0 <= choice < len(engines):
            raise ValueError(f"the router sent request {index} to instance {choice} of {len(engines)}")
        record.instance, record.dispatch_s = choice, now_s
        total = request.prompt_tokens + request.output_tokens
        engines[choice].dispatch(_Sequence(index, record, request.prompt_tokens, total), now_s)
    for engine in engines:
        engine.advance(math.inf)
    return RefResult(records, [engine.events for engine in engines], [engine.steps for engine in engines])
