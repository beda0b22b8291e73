"""Figures of predictions and baselines, by hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxroute.predictor.baselines import BagOfTokens, majority, task_majority
from jaxroute.predictor.buckets import Buckets
from jaxroute.predictor.metrics import calibration_error, macro_f1, score

BUCKETS = Buckets("three", (1, 10, 100), (5, 50, 300), (9, 99, 500))


def test_scores_by_hand() -> None:
    probabilities = np.asarray([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    scores = score(probabilities, np.asarray([4, 40, 200, 250]), BUCKETS)
    assert scores.n == 4
    assert scores.top1 == 0.75
    assert scores.off_by_one == 0.75
    assert scores.token_mae == (1 + 10 + 195 + 50) / 4
    # Buckets 0 to 2: 2 * 1 / 3, 1 and 2 * 1 / 3.
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_a_bucket_that_never_occurs_is_left_out_of_macro_f1() -> None:
    assert macro_f1(np.asarray([0, 0, 4]), np.asarray([0, 0, 4])) == 1.0


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    assert calibration_error(np.full(10, 0.8), np.arange(10) < 5) == pytest.approx(0.3)
    assert calibration_error(np.ones(4), np.ones(4, bool)) == pytest.approx(0.0)
    # Two bins: 0.4 off with one of three rows, right with the others.
    confidence, right = np.asarray([0.6, 1.0, 1.0]), np.asarray([True, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.4 / 3)


def test_no_rows_have_no_scores() -> None:
    scores = score(np.zeros((0, 3)), np.zeros(0, np.int64), BUCKETS)
    assert scores.n == 0
    assert math.isnan(scores.top1)


def test_majorities_are_shares_of_training_rows() -> None:
    bucket, task = np.asarray([0, 0, 1, 2]), np.asarray(["a", "a", "a", "b"])
    np.testing.assert_allclose(majority(bucket, 3, 2), [[0.5, 0.25, 0.25]] * 2)
    found = task_majority(bucket, task, 3, np.asarray(["b", "a", "other"]))
    np.testing.assert_allclose(found, [[0, 0, 1], [2 / 3, 1 / 3, 0], [0.5, 0.25, 0.25]])


def test_the_linear_baseline_learns_which_word_means_what() -> None:
    rng = np.random.default_rng(0)
    tokens = [np.concatenate([rng.integers(10, 20, 4), [number % 3]]) for number in range(90)]
    bucket = np.arange(90) % 3
    bag = BagOfTokens(tokens, bucket, 3)
    found = bag.predict([*tokens[:3], np.asarray([999], np.int64), np.zeros(0, np.int64)])
    assert found[:3].argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(found[4], [1 / 3] * 3, atol=0.2)


def test_the_linear_baseline_takes_the_task_where_it_is_told() -> None:
    tokens = [np.asarray([5, 6])] * 40
    task = np.asarray(["a", "b"] * 20)
    bag = BagOfTokens(tokens, np.arange(40) % 2, 2, task=task)
    assert bag.predict(tokens[:2], task[:2]).argmax(axis=1).tolist() == [0, 1]
