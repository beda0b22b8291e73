"""The service answers every prompt in time, keeps answers, and says why it fell back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.predictor.predictor import Estimate, Predictor
from jaxroute.predictor.service import PredictionService
from tiny_predictor import BUCKETS, tiny_folder, tiny_predictor

PATIENT = 30.0


class Gated(Predictor):
    """A predictor that waits until it may go on, and notes its batches."""

    def __init__(self) -> None:
        super().__init__(tiny_predictor())
        self.gate, self.started, self.batches = threading.Event(), threading.Event(), []

    def predict(self, requests: Sequence[tuple[str, str | None]]) -> list[Estimate]:
        self.batches.append(len(requests))
        self.started.set()
        assert self.gate.wait(PATIENT)
        return super().predict(requests)


@pytest.fixture
def gated() -> Iterator[Gated]:
    predictor = Gated()
    yield predictor
    predictor.gate.set()


@pytest.fixture
def service() -> Iterator[PredictionService]:
    with PredictionService(Predictor(tiny_predictor()), budget_s=PATIENT) as running:
        yield running


def test_the_answer_is_the_predictors(service: PredictionService) -> None:
    estimate = service.predict("tell me a story", "qa_open")
    [expected] = Predictor(tiny_predictor()).predict([("tell me a story", "qa_open")])
    assert estimate == expected
    assert estimate.tokens == BUCKETS.representative[estimate.bucket]
    assert estimate.upper == BUCKETS.upper[estimate.bucket]
    assert 0 < estimate.probability <= 1
    assert (estimate.task, estimate.task_source, estimate.fallback) == ("qa_open", "given", None)


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "\x00", "a\ud800b\udfff", "\U0001f600" * 3, "who " * 25_000, "x" * 100_000, "\n" * 5000, "北京" * 400],
    ids=["empty", "blank", "NUL", "lone surrogates", "emoji", "100,000 characters", "one word", "lines", "Chinese"],
)
@pytest.mark.parametrize("task", [None, "qa_open", "juggling", ""])
def test_no_prompt_and_no_task_is_too_odd(service: PredictionService, prompt: str, task: str | None) -> None:
    estimate = service.predict(prompt, task)
    assert 0 <= estimate.bucket < len(BUCKETS)
    assert estimate.fallback is None
    assert estimate.task_source == ("given" if task == "qa_open" else "predicted")


@pytest.mark.parametrize("prompt", [None, 3, b"bytes", ["a", "list"], [1, 2, 3]])
def test_what_is_no_text_gets_the_most_common_bucket(service: PredictionService, prompt: object) -> None:
    estimate = service.predict(prompt, "ner")
    assert (estimate.bucket, estimate.fallback) == (0, "no-text")
    assert service.counts().fallbacks["no-text"] == 1


def test_a_task_that_is_unknown_counts_as_none_and_is_counted(service: PredictionService) -> None:
    assert service.predict("who are you", "juggling") == service.predict("who are you")
    assert service.predict("who are you", 7) == service.predict("who are you")
    assert service.counts().unknown_tasks == 2
    assert service.predict("who are you", " QA-open ").task == "qa_open"


def test_a_prompt_asked_again_is_not_run_again(service: PredictionService) -> None:
    first = service.predict("who are you", "chat")
    assert service.predict("who are you", "chat") == first
    assert service.predict("who are you", "ner").task == "ner"
    counts = service.counts()
    assert (counts.requests, counts.cached, counts.prompts) == (3, 1, 2)
    assert counts.tasks == {"given": 3, "predicted": 0, "none": 0}


def test_the_prompts_seen_last_are_kept() -> None:
    with PredictionService(Predictor(tiny_predictor()), budget_s=PATIENT, cache=2) as service:
        for prompt in ("a", "b", "a", "c", "a", "b"):
            service.predict(prompt)
        assert service.counts().cached == 2
    with PredictionService(Predictor(tiny_predictor()), budget_s=PATIENT, cache=0) as service:
        assert service.predict("a") == service.predict("a")
        assert service.counts().cached == 0


def test_who_waits_too_long_gets_the_most_common_bucket_of_the_task(gated: Gated) -> None:
    with PredictionService(gated, budget_s=0.05) as service:
        start = time.monotonic()
        estimates = [service.predict("who", task) for task in ("qa_open", "chat", None, "juggling")]
        assert time.monotonic() - start < 2
        assert [estimate.bucket for estimate in estimates] == [2, 3, 1, 1]
        assert {estimate.fallback for estimate in estimates} == {"timeout"}
        assert service.counts().fallbacks["timeout"] == 4
        gated.gate.set()


def test_an_answer_that_comes_too_late_is_kept_for_the_next(gated: Gated) -> None:
    with PredictionService(gated, budget_s=0.1) as service:
        assert service.predict("who").fallback == "timeout"
        gated.gate.set()
        for _ in range(1000):
            if service.counts().prompts:
                break
            time.sleep(0.01)
        assert service.predict("who").fallback is None
        assert service.counts().cached == 1


def test_prompts_that_wait_together_run_together(gated: Gated) -> None:
    with PredictionService(gated, budget_s=PATIENT, most_batch=4) as service:
        first = service.submit("first")
        assert gated.started.wait(PATIENT)
        others = [service.submit(f"number {number}", "chat") for number in range(6)]
        gated.gate.set()
        alone = Predictor(tiny_predictor())
        for number, future in enumerate(others):
            [expected] = alone.predict([(f"number {number}", "chat")])
            assert future.result(PATIENT).bucket == expected.bucket
            assert future.result().probability == pytest.approx(expected.probability, abs=1e-5)
        assert first.result(PATIENT).fallback is None
        assert gated.batches == [1, 4, 2]


def test_too_many_that_wait_are_turned_away(gated: Gated) -> None:
    with PredictionService(gated, budget_s=PATIENT, most_waiting=2) as service:
        service.submit("first")
        assert gated.started.wait(PATIENT)
        kept = [service.submit("second"), service.submit("third")]
        assert service.submit("fourth", "ner").result(PATIENT).fallback == "overloaded"
        gated.gate.set()
        assert [future.result(PATIENT).fallback for future in kept] == [None, None]
        assert service.counts().fallbacks["overloaded"] == 1


def test_a_predictor_that_fails_is_a_fallback_and_the_next_one_is_served(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(tiny_predictor())
    with PredictionService(predictor, budget_s=PATIENT) as service:
        with monkeypatch.context() as patch:
            patch.setattr(predictor, "predict", lambda requests: 1 / 0)
            assert service.predict("who", "chat").fallback == "error"
        assert service.predict("who", "chat").fallback is None
        assert service.counts().fallbacks["error"] == 1
    assert "the length predictor failed on a batch of 1 prompts" in caplog.text


def test_a_closed_service_still_answers() -> None:
    service = PredictionService(Predictor(tiny_predictor()), budget_s=PATIENT)
    kept = service.predict("who")
    service.close()
    service.close()
    assert service.predict("who") == kept
    assert service.predict("you").fallback == "closed"


def test_an_event_loop_goes_on_meanwhile(gated: Gated) -> None:
    async def ask(service: PredictionService) -> list[Estimate]:
        both = [asyncio.ensure_future(service.predict_async(prompt)) for prompt in ("who", "you")]
        await asyncio.sleep(0.01)
        gated.gate.set()
        return [*await asyncio.gather(*both), await service.predict_async("who")]

    with PredictionService(gated, budget_s=PATIENT) as service:
        answers = asyncio.run(ask(service))
        assert [estimate.fallback for estimate in answers] == [None] * 3
        assert service.counts().cached == 1


def test_an_event_loop_is_not_kept_waiting(gated: Gated) -> None:
    with PredictionService(gated, budget_s=0.02) as service:
        assert asyncio.run(service.predict_async("who", "chat")).fallback == "timeout"
        assert service.counts().fallbacks["timeout"] == 1
        gated.gate.set()


def test_many_threads_get_what_one_would(service: PredictionService) -> None:
    prompts = [f"tell me {number % 10}" for number in range(200)]
    expected = {prompt: Predictor(tiny_predictor()).predict([(prompt, None)])[0].bucket for prompt in set(prompts)}
    answers: list[tuple[str, int]] = []

    def ask(part: list[str]) -> None:
        answers.extend((prompt, service.predict(prompt).bucket) for prompt in part)

    threads = [threading.Thread(target=ask, args=(prompts[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 200
    assert all(expected[prompt] == bucket for prompt, bucket in answers)
    assert service.counts().requests == 200


def test_damage_shows_when_a_service_is_loaded(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny")
    with PredictionService.load(folder, budget_s=PATIENT) as service:
        assert service.predict("who").fallback is None
    content = (folder / "predictor.safetensors").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("predictor.json", "tokenizer.json"):
        (other / name).write_bytes((folder / name).read_bytes())
    (other / "predictor.safetensors").write_bytes(content[:-7])
    with pytest.raises(InputError, match=r"predictor.safetensors: the file ends within .*; fetch it again"):
        PredictionService.load(other)


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"budget_s": 0.0}, {"budget_s": float("nan")}, {"most_batch": 0}, {"cache": -1}):
        with pytest.raises(ValueError, match="budget_s must be above 0"):
            PredictionService(Predictor(tiny_predictor()), **options)


def test_serving_imports_neither_jax_nor_transformers(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from jaxroute.predictor.service import PredictionService\n"
        f"with PredictionService.load({str(tiny_folder(tmp_path / 'tiny'))!r}, budget_s=30) as service:\n"
        "    assert service.predict('who are you').fallback is None\n"
        "print(sorted({'jax', 'flax', 'transformers', 'torch', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
