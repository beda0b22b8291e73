"""vLLM's own scheduler, its steps held to a profile's time: for `--scheduler-cls held_scheduler.HeldScheduler`.

Which requests run, chunks, KV blocks, preemptions, API and metrics stay vLLM's. It needs vLLM without asynchronous
scheduling (as on CPU), where a step is scheduled only after the last one's tokens were taken in.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from typing import Any

from step_hold import StepClock, StepWork, TraceWriter, step_ms, work_of
from vllm.v1.core.sched.scheduler import Scheduler

COEFFICIENTS, TRACE = "JAXROUTE_STEP_MS", "JAXROUTE_TRACE"
"""Environment variables: the nine coefficients as a JSON object, milliseconds, and the file to write the trace to."""

PR_SET_PDEATHSIG, PR_SET_TIMERSLACK = 1, 29

WORKING, WAKING = 1, 3
"""Real-time priorities of the engine's thread: while it runs its model, which has the whole step to do so, and while it
lets tokens go and schedules its next step. Between them come the API servers (`Testbed`), or else the tokens of one
engine would wait for the model of another."""


class HeldScheduler(Scheduler):
    """Holds every step that computes something to its step time, and lets its tokens go only then."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._coefficients = json.loads(os.environ[COEFFICIENTS])
        self._trace = TraceWriter(os.environ[TRACE])
        self._clock = StepClock()
        self._work = StepWork(0, 0, 0, 0, 0)
        self._preempted = 0
        self._counts = (0, 0, 0, 0)
        self._is_realtime = _prepare_thread()

    def schedule(self, *arguments: Any, **options: Any) -> Any:
        """Schedules as vLLM does, and notes what the step computes."""
        self._clock.begin()
        self._preempted = 0
        output = super().schedule(*arguments, **options)
        # schedule() has counted the step's tokens as computed already.
        scheduled = ((self.requests[name], new) for name, new in output.num_scheduled_tokens.items())
        self._work = work_of((new, each.num_computed_tokens - new, each.num_tokens) for each, new in scheduled)
        running, waiting = self.get_request_counts()
        self._counts = (waiting, running, self._preempted, self.kv_cache_manager.block_pool.get_num_free_blocks())
        self._set_priority(WORKING)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Waits until the step is to end, then takes in its tokens as vLLM does."""
        work = self._work
        self._set_priority(WAKING)
        held = self._clock.hold(step_ms(self._coefficients, work)) if work.prefill_tokens + work.decode_seqs else None
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if held is not None:
            self._trace.write(held, work, self._counts)
        if not self.has_unfinished_requests():
            self._clock.idle()
            self._trace.flush()
        return outputs

    def shutdown(self) -> None:
        """Ends the trace, and what vLLM ends."""
        self._trace.close()
        super().shutdown()

    def _set_priority(self, priority: int) -> None:
        if self._is_realtime:
            try:
                os.sched_setparam(0, os.sched_param(priority))
            except OSError:
                self._is_realtime = False

    def _preempt_request(self, *arguments: Any, **options: Any) -> None:
        self._preempted += 1
        super()._preempt_request(*arguments, **options)


def _prepare_thread() -> bool:
    """Makes the engine's thread wake when it is to, and its process end with the API server that started it.

    Returns:
      Whether it is in a real-time class; where the system does not permit that, its niceness stays.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(WAKING))
    except OSError:
        return False
    return True
