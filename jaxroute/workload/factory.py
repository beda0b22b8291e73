"""Workloads by name: what the command line, the benchmark and the tests ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.workload import synthetic as synthetic_sets
from jaxroute.workload.arrivals import check_rate, retime
from jaxroute.workload.chat import chat
from jaxroute.workload.five_task import five_task
from jaxroute.workload.synthetic import synthetic
from jaxroute.workload.table import RequestTable
from jaxroute.workload.traces import read_trace

CHAT = "chat"
CHAT_REQUESTS, CHAT_RATE = 2000, 4.0

FIVE_TASK = "five-task"
FIVE_TASK_REQUESTS, FIVE_TASK_RATE = 2000, 20.0
"""The paper's main run (section 6.1)."""

SYNTHETIC_REQUESTS, SYNTHETIC_RATE = 3000, 4.0
"""3,000 as in the paper (section 4.4), which prints no rate: 4/s keep four V100 busy without drowning them."""


def workload_names() -> dict[str, str]:
    """The generated workloads: name -> what it is."""
    return {
        FIVE_TASK: "the paper's mix of translation, sentiment, two kinds of question answering and entity recognition",
        CHAT: "a chat service: prompts and answers of widely spread lengths (lognormal)",
        "lh-hl-random": "light prompts with heavy decodes and heavy prompts with light decodes, at random",
        "all-random": "all four classes of light and heavy, at random",
        "lh-then-hl": "first light prompts with heavy decodes, then the reverse",
        "hl-then-lh": "first heavy prompts with light decodes, then the reverse",
    }


def make_workload(
    name_or_file: str,
    *,
    profile: StepProfile,
    requests: int | None = None,
    rate: float | None = None,
    seed: int = 0,
    arrivals: str = "poisson",
    cv: float = 1.0,
    heavy_prompt_s: float = synthetic_sets.HEAVY_PROMPT_S,
    heavy_decode_s: float = synthetic_sets.HEAVY_DECODE_S,
) -> RequestTable:
    """A generated workload by its name, or a trace from a file.

    Args:
      name_or_file: one of `workload_names()`, or a file that `read_trace` reads.
      profile: says what is heavy in the synthetic sets.
      requests: N; of a trace, its first N.
      rate: mean requests per second; a trace is re-timed to it.
      seed: of a generated workload.
      arrivals: process of a generated workload.
      cv: coefficient of variation of the gaps under `gamma`.
      heavy_prompt_s, heavy_decode_s: thresholds of the synthetic sets, seconds.

    Raises:
      InputError: no such workload or file, or a bad file, number or rate.
    """
    if requests is not None and requests < 1:
        raise InputError(f"--requests is {requests}, must be at least 1")
    if rate is not None:
        check_rate(rate)
    if seed < 0:
        raise InputError(f"--seed is {seed}, must be at least 0")
    if name_or_file == FIVE_TASK:
        count, speed = requests or FIVE_TASK_REQUESTS, rate or FIVE_TASK_RATE
        return five_task(count, speed, seed, arrivals=arrivals, cv=cv)
    if name_or_file == CHAT:
        return chat(requests or CHAT_REQUESTS, rate or CHAT_RATE, seed, arrivals=arrivals, cv=cv)
    if name_or_file in synthetic_sets.SETS:
        count, speed = requests or SYNTHETIC_REQUESTS, rate or SYNTHETIC_RATE
        return synthetic(
            name_or_file,
            count,
            speed,
            seed,
            profile,
            arrivals=arrivals,
            cv=cv,
            heavy_prompt_s=heavy_prompt_s,
            heavy_decode_s=heavy_decode_s,
        )
    if not Path(name_or_file).exists():
        known = ", ".join(workload_names())
        raise InputError(f"workload {name_or_file!r}: no such workload and no such file; generated: {known}")
    table = read_trace(name_or_file)
    if requests is not None:
        if requests > len(table):
            raise InputError(f"{name_or_file}: --requests is {requests}, but the trace has only {len(table)}")
        table = table.take(np.arange(requests))
    return table if rate is None else retime(table, rate)
