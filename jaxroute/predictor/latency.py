"""How long a prediction takes on this machine, from the text to the bucket."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from jaxroute.predictor.predictor import Predictor

WORDS = "the router asks how long an answer will be before it sends a request to one of its servers and waits "


@dataclasses.dataclass(frozen=True)
class Latency:
    """Times of single prompts.

    Attributes:
      tokens: of each prompt, special tokens and hint included.
      prompts: that were timed.
      p50_ms, p99_ms: wall clock.
      cpu_p50_ms, cpu_p99_ms: what the calling thread ran of it; less than the wall clock on a busy machine.
    """

    tokens: int
    prompts: int
    p50_ms: float
    p99_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float


def measure(predictor: Predictor, *, prompts: int = 500) -> Latency:
    """Times prompts of the most tokens that the predictor reads, one by one, each with a task if it knows any.

    Args:
      predictor: what predicts.
      prompts: to time, after a tenth as many that warm up.
    """
    tasks = predictor.file.tasks
    task = tasks[0] if tasks else None
    text = WORDS * (1 + 2 * predictor.file.max_tokens // len(WORDS.split()))
    wall, cpu = np.zeros(prompts), np.zeros(prompts)
    for number in range(-(prompts // 10), prompts):
        prompt = f"{number} {text}"
        start, start_cpu = time.perf_counter(), time.thread_time()
        predictor.predict([(prompt, task)])
        wall[number], cpu[number] = time.perf_counter() - start, time.thread_time() - start_cpu
    times = [float(1000 * np.quantile(values, share)) for values in (wall, cpu) for share in (0.5, 0.99)]
    return Latency(len(predictor.tokenizer.encode(text, task).tokens), prompts, *times)
