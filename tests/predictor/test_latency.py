"""A prediction is quick, however long the prompt."""

from __future__ import annotations

import time

from jaxroute.predictor.latency import measure
from jaxroute.predictor.predictor import Predictor
from tiny_predictor import tiny_predictor


def cpu_ms(predictor: Predictor, prompt: str) -> float:
    """Fastest of some runs, so that nothing else on the machine counts."""
    times = []
    for _ in range(30):
        start = time.thread_time()
        predictor.predict([(prompt, "ner")])
        times.append(time.thread_time() - start)
    return 1000 * min(times)


def test_a_huge_prompt_takes_no_longer_than_one_that_is_just_cut() -> None:
    predictor = Predictor(tiny_predictor())
    text = "tell me the story of who you are "
    cut, huge = cpu_ms(predictor, text * 20), cpu_ms(predictor, text * 60_000)
    assert huge < 2 * cut + 1


def test_latency_is_measured_at_the_most_tokens() -> None:
    times = measure(Predictor(tiny_predictor()), prompts=20)
    assert (times.tokens, times.prompts) == (48, 20)
    assert 0 < times.p50_ms <= times.p99_ms
    assert 0 < times.cpu_p50_ms <= times.cpu_p99_ms
