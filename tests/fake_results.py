"""RunResults without a simulator: a small one worked out by hand, and a queue-like one for the pictures."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.results import RequestRecords, RunResult, Timeline
from jaxroute.workload.table import RequestTable


def small_result(policy: str = "round-robin", **record_changes: np.ndarray) -> RunResult:
    """Four requests on two instances, 0.5 s and 0.25 s of front end, every time a multiple of 1/8 s.

    | request | arrival | dispatch | start | first | finish | instance | prompt | output | largest gap |
    |      10 |   1     |   1      | 1.25  | 2     |  4     |        0 |    100 |      5 |   1         |
    |      11 |   1.5   |   2      | 2     | 2.5   |  2.5   |        1 |    200 |      1 |   0         |
    |      12 |   2     |   2      | 2.5   | 3     |  9     |        0 |    300 |      4 |   3         |
    |      13 |   2     |   3      | 3.5   | 4     |  5     |        0 |     50 |      3 |   0.75      |
    """
    table = RequestTable.create(
        np.array([1, 1.5, 2, 2]),
        np.array([100, 200, 300, 50]),
        np.array([5, 1, 4, 3]),
        name="small",
        task=np.array([0, 1, 0, 1]),
        task_names=("chat", "sum, short"),
        request_id=np.arange(10, 14),
    )
    records = RequestRecords(
        instance=np.array([0, 1, 0, 0]),
        dispatch_s=np.array([1, 2, 2, 3.0]),
        start_s=np.array([1.25, 2, 2.5, 3.5]),
        first_token_s=np.array([2, 2.5, 3, 4]),
        finish_s=np.array([4, 2.5, 9, 5]),
        max_gap_s=np.array([1, 0, 3, 0.75]),
        preemptions=np.array([0, 0, 2, 1]),
        recomputed_tokens=np.array([0, 0, 640, 60]),
    )
    records = dataclasses.replace(records, **record_changes)
    return RunResult(policy, table, records, np.array([0.5, 0.25]), 0.02)


def one_token_result() -> RunResult:
    """`small_result` where every output is one token, yielded when the first token was."""
    result = small_result()
    records = dataclasses.replace(result.records, finish_s=result.records.first_token_s, max_gap_s=np.zeros(4))
    return dataclasses.replace(result, table=result.table.replace(output_tokens=np.ones(4, np.int64)), records=records)


def small_timeline() -> Timeline:
    """Three router intervals of 0.5 s on two instances, and five engine steps of which the last one preempts.

    Instance 0 prefills, decodes, then mixes; instance 1 decodes, then prefills.
    """
    return Timeline(
        time_s=np.array([0, 0.5, 1]),
        router_queue=np.array([0, 3, 1]),
        running=np.array([[0, 1], [2, 1], [2, 0]]),
        waiting=np.array([[0, 0], [1, 0], [4, 0]]),
        step_instance=np.array([0, 1, 0, 1, 0]),
        step_start_s=np.array([0, 0.25, 0.5, 0.75, 1]),
        step_duration_s=np.array([0.5, 0.125, 0.25, 0.25, 0.375]),
        step_prefill_tokens=np.array([100, 0, 0, 200, 300]),
        step_decode_seqs=np.array([0, 1, 2, 0, 2]),
        step_preemptions=np.array([0, 0, 0, 0, 1]),
    )


def queue_result(
    policy: str, *, requests: int = 500, rate: float = 24.0, instances: int = 4, seed: int = 0
) -> RunResult:
    """A crude chunked engine in front of a policy: queues, mixed steps and preemptions that look like real ones."""
    rng = np.random.default_rng(seed)
    table = RequestTable.create(
        np.cumsum(rng.exponential(1 / rate, requests)),
        np.clip(rng.lognormal(5.6, 1.0, requests), 8, 6000),
        np.clip(rng.lognormal(5.0, 0.7, requests), 1, 1500),
        name="chat-like",
    )
    return _Fleet(policy, table, instances, np.random.default_rng(seed + 1)).run()


class _Fleet:
    """Requests held at the router until `dt`, then dispatched; each instance runs its engine steps one by one."""

    KV_TOKENS = 9_000
    TOKEN_BUDGET = 2048
    DT_S = 0.02

    def __init__(self, policy: str, table: RequestTable, instances: int, rng: np.random.Generator):
        self.policy, self.table, self.instances, self.rng = policy, table, instances, rng
        count = len(table)
        self.instance = np.zeros(count, np.int64)
        self.times = {name: np.full(count, np.nan) for name in ("dispatch", "start", "first", "finish", "last")}
        self.max_gap = np.zeros(count)
        self.computed, self.produced, self.preemptions, self.recomputed = np.zeros((4, count), np.int64)
        self.running: list[list[int]] = [[] for _ in range(instances)]
        self.waiting: list[list[int]] = [[] for _ in range(instances)]
        self.clock = np.zeros(instances)
        self.steps: list[tuple[float, ...]] = []

    def run(self) -> RunResult:
        queue: list[int] = []
        intervals = []
        arrived = interval = 0
        while np.isnan(self.times["finish"]).any():
            now = interval * self.DT_S
            while arrived < len(self.table) and self.table.arrival_s[arrived] <= now:
                queue.append(arrived)
                arrived += 1
            target = self._target(interval) if queue else -1
            if target >= 0:
                self._dispatch(queue.pop(0), target, now)
            sizes = [(len(running), len(waiting)) for running, waiting in zip(self.running, self.waiting, strict=True)]
            intervals.append((now, len(queue), sizes))
            for instance in range(self.instances):
                self._advance(instance, now)
            interval += 1
        return self._result(intervals)

    def _target(self, interval: int) -> int:
        load = np.array([len(r) + len(w) for r, w in zip(self.running, self.waiting, strict=True)])
        if self.policy == "random":
            return int(self.rng.integers(self.instances))
        if self.policy == "round-robin":
            return int(np.count_nonzero(~np.isnan(self.times["dispatch"]))) % self.instances
        if self.policy == "gated-central-queue":
            return int(load.argmin()) if load.min() < 12 else -1
        return int(load.argmin())

    def _dispatch(self, request: int, target: int, now: float) -> None:
        self.instance[request], self.times["dispatch"][request] = target, now
        self.waiting[target].append(request)

    def _advance(self, instance: int, now: float) -> None:
        self.clock[instance] = max(self.clock[instance], now)
        while self.clock[instance] < now + self.DT_S and (self.running[instance] or self.waiting[instance]):
            self._step(instance)

    def _step(self, instance: int) -> None:
        running, waiting, start = self.running[instance], self.waiting[instance], self.clock[instance]
        preempted = 0
        while len(running) > 1 and self.computed[running].sum() + len(running) > self.KV_TOKENS:
            victim = running.pop()
            self.recomputed[victim] += self.computed[victim]
            self.computed[victim], preempted = 0, preempted + 1
            self.preemptions[victim] += 1
            waiting.insert(0, victim)
        known = self.table.prompt_tokens + self.produced
        budget = self.TOKEN_BUDGET
        chunks: dict[int, int] = {}
        for request in list(running):
            chunks[request] = min(known[request] - self.computed[request], budget)
            budget -= chunks[request]
        while waiting and not preempted and budget > 0 and known[[*running, waiting[0]]].sum() < self.KV_TOKENS:
            request = waiting.pop(0)
            running.append(request)
            self.times["start"][request] = np.fmin(self.times["start"][request], start)
            chunks[request] = min(known[request], budget)
            budget -= chunks[request]
        prefill = sum(chunk for request, chunk in chunks.items() if chunk > 1 or not self.produced[request])
        decodes = sum(chunk == 1 and self.produced[request] > 0 for request, chunk in chunks.items())
        duration = 1e-3 * (9 + 0.055 * prefill + 2.5e-4 * self.computed[running].sum() + 0.05 * decodes)
        self.steps.append((instance, start, duration, prefill, decodes, preempted))
        self.clock[instance] = start + duration
        self._yield_tokens(instance, chunks)

    def _yield_tokens(self, instance: int, chunks: dict[int, int]) -> None:
        now = self.clock[instance]
        for request, chunk in chunks.items():
            self.computed[request] += chunk
            if self.computed[request] < self.table.prompt_tokens[request] + self.produced[request]:
                continue
            if self.produced[request] == 0:
                self.times["first"][request] = now
            else:
                gap = now - self.times["last"][request]
                self.max_gap[request] = max(self.max_gap[request], gap)
            self.times["last"][request] = now
            self.produced[request] += 1
            if self.produced[request] == self.table.output_tokens[request]:
                self.times["finish"][request] = now
                self.running[instance].remove(request)

    def _result(self, intervals: list[tuple[float, int, list[tuple[int, int]]]]) -> RunResult:
        time_s, queue, sizes = (np.array(column) for column in zip(*intervals, strict=True))
        instance, start, duration, *counts = (np.array(column) for column in zip(*self.steps, strict=True))
        times = {f"{name}_s": self.times[name] for name in ("dispatch", "start", "finish")}
        records = RequestRecords(
            self.instance,
            first_token_s=self.times["first"],
            max_gap_s=self.max_gap,
            preemptions=self.preemptions,
            recomputed_tokens=self.recomputed,
            **times,
        )
        timeline = Timeline(time_s, queue, sizes[:, :, 0], sizes[:, :, 1], instance, start, duration, *counts)
        return RunResult(self.policy, self.table, records, np.full(self.instances, 0.01), self.DT_S, timeline)
