"""What a finished simulation hands over: plain NumPy, seconds, one row per request.

Axis letters: N requests, I instances, T router intervals, K engine steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.workload.table import RequestTable


@dataclasses.dataclass(frozen=True)
class RequestRecords:
    """What happened to each request; every time is in seconds on the workload's clock, without `frontend_ms`.

    Attributes:
      instance: [N] int, where it ran.
      dispatch_s: [N] when the router sent it.
      start_s: [N] start of the engine step that first admitted it.
      first_token_s: [N] end of the engine step that yielded its first token (kept over preemptions).
      finish_s: [N] end of the engine step that yielded its last token.
      max_gap_s: [N] longest time between two of its tokens; 0 for a single token.
      preemptions: [N] int, how often it was preempted.
      recomputed_tokens: [N] int, computed KV tokens that preemptions threw away.
    """

    instance: np.ndarray
    dispatch_s: np.ndarray
    start_s: np.ndarray
    first_token_s: np.ndarray
    finish_s: np.ndarray
    max_gap_s: np.ndarray
    preemptions: np.ndarray
    recomputed_tokens: np.ndarray


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The state of queues at each router interval, and every engine step.

    Attributes:
      time_s: [T] start of the interval, seconds.
      router_queue: [T] int, requests held at the router.
      running: [T, I] int, sequences that run at each instance.
      waiting: [T, I] int, requests that wait in each instance's own queue.
      step_instance: [K] int, instance of the engine step.
      step_start_s: [K] start of the step, seconds, ascending for each instance.
      step_duration_s: [K] duration of the step, seconds.
      step_prefill_tokens: [K] int, new prompt tokens computed.
      step_decode_seqs: [K] int, sequences decoded.
      step_preemptions: [K] int, sequences preempted when the step was scheduled.
    """

    time_s: np.ndarray
    router_queue: np.ndarray
    running: np.ndarray
    waiting: np.ndarray
    step_instance: np.ndarray
    step_start_s: np.ndarray
    step_duration_s: np.ndarray
    step_prefill_tokens: np.ndarray
    step_decode_seqs: np.ndarray
    step_preemptions: np.ndarray


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One policy's run over one workload on one fleet.

    Attributes:
      policy: the policy's name.
      table: the workload, as it ran.
      records: what happened to each of its N requests.
      frontend_s: [I] constant added to the TTFT and E2E that a client of the instance sees, seconds.
      dt_s: router interval, seconds.
      timeline: queues and engine steps, where they were recorded.
    """

    policy: str
    table: RequestTable
    records: RequestRecords
    frontend_s: np.ndarray
    dt_s: float
    timeline: Timeline | None = None

    @property
    def instances(self) -> int:
        """Number of instances in the fleet."""
        return len(self.frontend_s)
