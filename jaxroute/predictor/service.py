"""The predictor within a router: batched, cached, never late and never failing; NumPy, no jax."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import hashlib
import logging
import queue
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

from jaxroute.predictor.hint import known_task
from jaxroute.predictor.predictor import Estimate, Predictor

LOG = logging.getLogger(__name__)

FALLBACKS = ("timeout", "overloaded", "no-text", "error", "closed")
"""Why a request got the most common bucket: its time was up; too many were waiting; its prompt is no text (a list of
token ids, say); the predictor failed; the service was closed."""

_Key = tuple[bytes, str | None]


@dataclasses.dataclass(frozen=True)
class ServiceCounts:
    """What a service has done so far.

    Attributes:
      requests: asked for.
      cached: answered from the cache.
      batches: that the network ran.
      prompts: of these batches.
      fallbacks: requests by why they got the most common bucket, see `FALLBACKS`.
      tasks: requests by where their task is from: `given`, `predicted`, `none`.
      unknown_tasks: requests that named a task that the predictor does not know.
    """

    requests: int
    cached: int
    batches: int
    prompts: int
    fallbacks: dict[str, int]
    tasks: dict[str, int]
    unknown_tasks: int


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request that waits for the network."""

    prompt: str
    task: str | None
    key: _Key
    deadline: float
    future: Future[Estimate]


class PredictionService:
    """Predicts for many threads or tasks at once; every answer comes within the time budget, and none is an exception.

    One thread of its own runs the network on whatever has come in meanwhile, as one batch. Who waits longer than the
    budget gets the most common bucket of the request's task, or of all requests; so does whoever cannot be served, and
    each reason is counted. Answers are kept for the prompts seen last.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        budget_s: float = 0.02,
        cache: int = 4096,
        most_batch: int = 16,
        most_waiting: int = 256,
    ) -> None:
        """Starts the thread.

        Args:
          predictor: what predicts; the service's own from now on.
          budget_s: most seconds that a request waits.
          cache: answers to keep.
          most_batch: most prompts that the network takes at once.
          most_waiting: requests beyond which another one is not let in.

        Raises:
          ValueError: a number below 1, or no time at all.
        """
        if not budget_s > 0 or cache < 0 or min(most_batch, most_waiting) < 1:
            raise ValueError("budget_s must be above 0, cache at least 0, most_batch and most_waiting at least 1")
        self.predictor = predictor
        self.budget_s = budget_s
        self._most_cached, self._most_batch = cache, most_batch
        self._cache: collections.OrderedDict[_Key, Estimate] = collections.OrderedDict()
        self._waiting: queue.Queue[_Asked | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._closed = False
        self._counts: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=self._run, name="jaxroute-predictor", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, name: str | Path = "default", **options: float) -> PredictionService:
        """A service of a predictor folder, or the shipped predictor; one prompt is run to warm it up.

        Raises:
          InputError: there is no such predictor, or it is damaged: never later.
        """
        predictor = Predictor.load(name)
        predictor.predict([("warm-up " * 32, None)])
        return cls(predictor, **options)  # type: ignore[arg-type]

    def predict(self, prompt: object, task: object = None) -> Estimate:
        """The estimate of one request; blocks for at most the budget.

        Args:
          prompt: its text; anything else is answered with the most common bucket.
          task: what the client named in a header or field, if anything.
        """
        future = self.submit(prompt, task)
        try:
            return future.result(self.budget_s)
        except FutureTimeoutError:
            return self._late(future, task)

    async def predict_async(self, prompt: object, task: object = None) -> Estimate:
        """As `predict`, for an event loop: other tasks run meanwhile."""
        future = self.submit(prompt, task)
        if future.done():
            return future.result()
        try:
            # Shielded: an answer that comes too late is still worth keeping.
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), self.budget_s)
        except TimeoutError:
            return self._late(future, task)

    def submit(self, prompt: object, task: object = None) -> Future[Estimate]:
        """A future of the estimate, for those who keep the time themselves; it never fails."""
        future: Future[Estimate] = Future()
        known = known_task(task, self.predictor.file.tasks)
        with self._lock:
            self._counts["requests"] += 1
            if task is not None and known is None:
                self._counts["unknown_tasks"] += 1
        if not isinstance(prompt, str):
            return self._give_up(future, task, "no-text")
        key = self._key(prompt, known)
        with self._lock:
            estimate = self._cache.get(key)
            if estimate is not None:
                self._cache.move_to_end(key)
                self._counts["cached"] += 1
        if estimate is not None:
            return self._answer(future, estimate)
        asked = _Asked(prompt, known, key, time.monotonic() + self.budget_s, future)
        reason = None
        # Under the lock, so that nothing comes in behind what ends the thread.
        with self._lock:
            if self._closed:
                reason = "closed"
            else:
                try:
                    self._waiting.put_nowait(asked)
                except queue.Full:
                    reason = "overloaded"
        return future if reason is None else self._give_up(future, task, reason)

    def counts(self) -> ServiceCounts:
        """What has been done so far."""
        with self._lock:
            counts = self._counts.copy()
        return ServiceCounts(
            requests=counts["requests"],
            cached=counts["cached"],
            batches=counts["batches"],
            prompts=counts["prompts"],
            fallbacks={reason: counts[f"fallback {reason}"] for reason in FALLBACKS},
            tasks={source: counts[f"task {source}"] for source in ("given", "predicted", "none")},
            unknown_tasks=counts["unknown_tasks"],
        )

    def close(self) -> None:
        """Ends the thread; whoever asks from now on gets the most common bucket, or an answer that was kept."""
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._waiting.put(None)
        self._thread.join()

    def __enter__(self) -> PredictionService:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while (asked := self._waiting.get()) is not None:
            batch, closing = [asked], False
            while len(batch) < self._most_batch and not closing:
                try:
                    another = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    closing = True
                else:
                    batch.append(another)
            self._run_batch(batch)
            if closing:
                break

    def _run_batch(self, batch: list[_Asked]) -> None:
        """Answers a batch; the network runs for those only whose time is not up."""
        now = time.monotonic()
        for asked in batch:
            if asked.deadline <= now:
                self._give_up(asked.future, asked.task, "timeout")
        batch = [asked for asked in batch if asked.deadline > now]
        if not batch:
            return
        try:
            estimates = self.predictor.predict([(asked.prompt, asked.task) for asked in batch])
        # Whatever it is, a router must go on.
        except Exception:
            LOG.exception("the length predictor failed on a batch of %d prompts", len(batch))
            for asked in batch:
                self._give_up(asked.future, asked.task, "error")
            return
        with self._lock:
            self._counts["batches"] += 1
            self._counts["prompts"] += len(batch)
            for asked, estimate in zip(batch, estimates, strict=True):
                self._cache[asked.key] = estimate
            while len(self._cache) > self._most_cached:
                self._cache.popitem(last=False)
        for asked, estimate in zip(batch, estimates, strict=True):
            self._answer(asked.future, estimate)

    def _late(self, future: Future[Estimate], task: object) -> Estimate:
        """The fallback for a request whose time is up, unless its answer comes at this very moment."""
        fallback = self.predictor.fallback(task, "timeout")
        self._answer(future, fallback)
        return future.result()

    def _give_up(self, future: Future[Estimate], task: object, reason: str) -> Future[Estimate]:
        return self._answer(future, self.predictor.fallback(task, reason))

    def _answer(self, future: Future[Estimate], estimate: Estimate) -> Future[Estimate]:
        """Answers a request, once: whoever comes second changes nothing."""
        with self._lock:
            first = not future.running() and not future.done() and future.set_running_or_notify_cancel()
            if first:
                if estimate.fallback is not None:
                    self._counts[f"fallback {estimate.fallback}"] += 1
                self._counts[f"task {estimate.task_source}"] += 1
        if first:
            future.set_result(estimate)
        return future

    def _key(self, prompt: str, task: str | None) -> _Key:
        """What an answer is kept by: all that the tokenizer looks at, so that its time is bounded too."""
        pieces, _ = self.predictor.tokenizer.pieces(prompt)
        digest = hashlib.blake2b(f"{len(prompt)} {len(pieces)}".encode(), digest_size=16)
        for piece in pieces:
            digest.update(piece.encode())
        return digest.digest(), task
