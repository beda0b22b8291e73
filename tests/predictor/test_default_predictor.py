"""The predictor that ships with the package works out of the box."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.predictor.folder import find_predictor, read_predictor
from jaxroute.predictor.predictor_file import PredictorFile
from jaxroute.predictor.service import PredictionService
from jaxroute.workload import five_task
from jaxroute.workload.five_task import TASK_NAMES
from jaxroute.workload.prediction import predict


@pytest.fixture
def shipped() -> PredictorFile:
    try:
        return read_predictor(find_predictor("default"))
    except InputError as error:
        if "none ships" not in str(error):
            raise
        pytest.skip(str(error))


def test_it_is_small_and_knows_the_papers_tasks(shipped: PredictorFile) -> None:
    assert shipped.float16
    assert sum(path.stat().st_size for path in find_predictor("default").iterdir()) < 8 * 2**20
    assert set(TASK_NAMES) <= set(shipped.tasks)


def test_it_was_measured_to_be_better_than_the_most_common_bucket(shipped: PredictorFile) -> None:
    overall = shipped.confusion.overall
    assert overall.sum() > 500
    assert shipped.confusion.accuracy() > overall.sum(axis=1).max() / overall.sum() + 0.2


def test_it_serves(shipped: PredictorFile) -> None:
    with PredictionService.load(budget_s=30.0) as service:
        for prompt in ("", "What is the capital of France?", "x" * 100_000, "\ud800"):
            assert service.predict(prompt).fallback is None
        short = service.predict("Classify the sentiment of this review: what a film! Answer in one word.", "sentiment")
        long = service.predict("Explain in detail how the immune system fights a virus.", "qa_open")
        assert short.tokens < long.tokens


def test_the_simulator_knows_its_mistakes(shipped: PredictorFile) -> None:
    table = five_task(2000, 10.0, 0)
    true = shipped.buckets.bucket_of(table.output_tokens)
    right = np.asarray(shipped.buckets.representative)[true]
    assert 0.3 < np.mean(predict(table, "confusion", seed=0).tokens == right) < 1


@pytest.mark.slow
def test_it_takes_two_milliseconds_on_one_core(shipped: PredictorFile) -> None:
    code = (
        "from jaxroute.predictor.latency import measure\n"
        "from jaxroute.predictor.predictor import Predictor\n"
        "times = [measure(Predictor.load()) for _ in range(3)]\n"
        "print(min(each.cpu_p50_ms for each in times), min(each.cpu_p99_ms for each in times))"
    )
    one = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=one)
    p50, p99 = map(float, done.stdout.split())
    assert p50 <= 2
    assert p99 <= 5
