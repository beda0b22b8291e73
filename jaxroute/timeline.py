"""Gathers the traces of a run, segment by segment, into one timeline per policy."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from jaxroute.results import Timeline
from jaxroute.rollout import Trace


class TimelineBuilder:
    """Collects one lane's traces; `build` joins them.

    The idle intervals after the last engine step are left out.
    """

    def __init__(self, dt: float) -> None:
        self._dt = dt
        self._intervals = 0
        self._queues: list[tuple[np.ndarray, ...]] = []
        self._steps: list[tuple[np.ndarray, ...]] = []

    def add(self, trace: Trace) -> None:
        """Adds the next intervals of the lane, [T, ...] leaves in NumPy."""
        log = trace.steps
        at, instance, row = np.nonzero(log.duration > 0)
        start_s = (self._intervals + at) * self._dt + log.start_offset[at, instance, row].astype(np.float64)
        fields = (log.duration, log.prefill_tokens, log.decode_seqs, log.preemptions)
        self._steps.append((instance, start_s, *(np.asarray(field)[at, instance, row] for field in fields)))
        queues = trace.router_queue, trace.running, trace.waiting
        self._queues.append(tuple(np.asarray(queue) for queue in queues))
        self._intervals += len(trace.router_queue)

    def build(self) -> Timeline:
        """The whole timeline."""
        router_queue, running, waiting = (np.concatenate(parts) for parts in zip(*self._queues, strict=True))
        instance, start_s, duration, prefill, decode, preemptions = (
            np.concatenate(parts) for parts in zip(*self._steps, strict=True)
        )
        active = (router_queue > 0) | (running.sum(-1) + waiting.sum(-1) > 0)
        used = int(np.flatnonzero(active)[-1]) + 2 if active.any() else 1
        return Timeline(
            time_s=np.arange(self._intervals)[:used] * self._dt,
            router_queue=router_queue[:used],
            running=running[:used],
            waiting=waiting[:used],
            step_instance=instance,
            step_start_s=start_s,
            step_duration_s=duration.astype(np.float64),
            step_prefill_tokens=prefill,
            step_decode_seqs=decode,
            step_preemptions=preemptions,
        )


def collect(builders: Sequence[TimelineBuilder], trace: Trace | None) -> None:
    """Adds the next intervals of a batch of lanes ([T, E, ...] leaves, on the device) to their builders."""
    if trace is None:
        raise ValueError("the run kept no trace")
    host = jax.device_get(trace)
    for lane, builder in enumerate(builders):
        builder.add(jax.tree.map(lambda leaf, lane=lane: leaf[:, lane], host))
