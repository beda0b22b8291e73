"""The testbed's scheduler for an engine that Ray starts; it is imported in vLLM's own environment."""

from __future__ import annotations

import os
from typing import Any

from held_scheduler import HeldScheduler


class PatientScheduler(HeldScheduler):
    """In no real-time class: Ray has engines wait for their worker in a loop that would leave it no time there."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._is_realtime:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            self._is_realtime = False
