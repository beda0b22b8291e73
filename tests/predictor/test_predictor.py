"""What is predicted of a request, and where its task is from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxroute.predictor.predictor import Predictor
from jaxroute.predictor.runtime import Network
from tiny_predictor import BUCKETS, TASKS, tiny_predictor

PROMPTS = ("who are you", "tell me the story", "", "is this a task")


def logits(predictor: Predictor, prompt: str, task: str | None) -> tuple[np.ndarray, np.ndarray]:
    file = predictor.file
    output = Network(file.config, file.weights)([predictor.tokenizer.encode(prompt, task)])
    return output.buckets[0], output.tasks[0]


def test_the_bucket_is_the_likeliest_and_its_figures_go_with_it() -> None:
    predictor = Predictor(tiny_predictor())
    [estimate] = predictor.predict([("who are you", "ner")])
    buckets, _ = logits(predictor, "who are you", "ner")
    shares = np.exp(buckets) / np.exp(buckets).sum()
    assert estimate.bucket == buckets.argmax()
    assert (estimate.tokens, estimate.upper) == (
        BUCKETS.representative[estimate.bucket],
        BUCKETS.upper[estimate.bucket],
    )
    assert estimate.probability == pytest.approx(shares.max(), rel=1e-5)
    assert estimate.expected_tokens == pytest.approx(shares @ np.asarray(BUCKETS.representative), rel=1e-5)


def test_where_the_hint_is_optional_a_prompt_without_a_task_is_predicted_without() -> None:
    predictor = Predictor(tiny_predictor(hint="optional"))
    for prompt in PROMPTS:
        [estimate] = predictor.predict([(prompt, None)])
        buckets, tasks = logits(predictor, prompt, None)
        assert estimate.bucket == buckets.argmax()
        assert (estimate.task, estimate.task_source) == (TASKS[tasks.argmax()], "predicted")


def test_where_the_hint_is_required_the_task_is_predicted_first() -> None:
    predictor = Predictor(tiny_predictor(hint="required"))
    estimates = predictor.predict([(prompt, "chat" if prompt == "" else None) for prompt in PROMPTS])
    for prompt, estimate in zip(PROMPTS, estimates, strict=True):
        _, tasks = logits(predictor, prompt, None)
        task = "chat" if prompt == "" else TASKS[tasks.argmax()]
        assert estimate.task == task
        assert estimate.task_source == ("given" if prompt == "" else "predicted")
        buckets, _ = logits(predictor, prompt, task)
        assert estimate.bucket == buckets.argmax()
        assert estimate.probability == pytest.approx(np.exp(buckets).max() / np.exp(buckets).sum(), rel=1e-4)


def test_where_no_hint_is_used_a_given_task_changes_no_bucket() -> None:
    predictor = Predictor(tiny_predictor(hint="never"))
    with_task, without = predictor.predict([("who are you", "ner"), ("who are you", None)])
    assert with_task.probability == pytest.approx(without.probability, rel=1e-5)
    assert (with_task.task, with_task.task_source) == ("ner", "given")
    assert without.task_source == "predicted"


def test_without_a_task_head_a_task_that_is_not_given_is_none() -> None:
    predictor = Predictor(tiny_predictor(tasks=False))
    given, unknown = predictor.predict([("who", "ner"), ("who", "juggling")])
    assert (given.task, given.task_source) == ("ner", "given")
    assert (unknown.task, unknown.task_source) == (None, "none")


def test_the_fallback_is_the_most_common_bucket_of_the_task_or_of_all() -> None:
    predictor = Predictor(tiny_predictor())
    buckets = [predictor.fallback(task, "timeout").bucket for task in (*TASKS, "juggling", None, 3)]
    assert buckets == [2, 0, 3, 1, 1, 1]
    estimate = predictor.fallback("ner", "timeout")
    assert (estimate.tokens, estimate.upper, estimate.expected_tokens) == (4, 9, 4.0)
    assert math.isnan(estimate.probability)
    assert (estimate.task_source, estimate.fallback) == ("given", "timeout")


def test_no_requests_get_no_estimates() -> None:
    assert Predictor(tiny_predictor()).predict([]) == []
