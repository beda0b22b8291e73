"""Mistakes are drawn as they were measured."""

from __future__ import annotations

import numpy as np
import pytest

from jaxroute.predictor.confusion import NO_TASK, Confusion
from tiny_predictor import tiny_confusion

COUNT = 20_000


def drawn(true: int, task: int) -> np.ndarray:
    """Shares of the buckets that are drawn for a true one."""
    many = np.full(COUNT, true)
    bucket = tiny_confusion().draw(many, np.full(COUNT, task), np.random.default_rng(0))
    return np.bincount(bucket, minlength=4) / COUNT


def test_rows_are_counted_by_task() -> None:
    confusion = Confusion.measured(
        np.asarray([0, 0, 1, 2]), np.asarray([0, 1, 1, 0]), np.asarray([0, 1, 1, NO_TASK]), buckets=3, tasks=2
    )
    assert confusion.by_task.tolist() == [
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 1, 0], [0, 1, 0], [0, 0, 0]],
    ]
    assert confusion.overall.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion.accuracy() == 0.5


def test_each_task_has_its_own_mistakes() -> None:
    np.testing.assert_allclose(drawn(1, 0), [0.2, 0.6, 0.2, 0], atol=0.02)
    np.testing.assert_allclose(drawn(0, 1), [0.9, 0.1, 0, 0], atol=0.02)
    assert drawn(1, 2).tolist() == [0, 0, 1, 0]


def test_without_a_task_the_mistakes_are_those_of_all_rows() -> None:
    np.testing.assert_allclose(drawn(0, NO_TASK), np.asarray([69, 31, 0, 0]) / 100, atol=0.02)


def test_a_length_that_a_task_never_had_is_mistaken_as_in_all_rows() -> None:
    np.testing.assert_allclose(drawn(3, 1), np.asarray([0, 0, 20, 70]) / 90, atol=0.02)


def test_a_length_that_no_row_had_is_predicted_right() -> None:
    confusion = Confusion(np.zeros((3, 3), np.int64), np.zeros((0, 3, 3), np.int64))
    true = np.asarray([0, 1, 2, 1])
    bucket = confusion.draw(true, np.full(4, NO_TASK), np.random.default_rng(0))
    np.testing.assert_array_equal(bucket, true)
    assert confusion.accuracy() == 0


@pytest.mark.parametrize("number", [0.0, np.nextafter(1.0, 0.0)])
def test_no_draw_hits_a_bucket_that_was_never_predicted(number: float) -> None:
    class Fixed:
        def random(self, size: int) -> np.ndarray:
            return np.full(size, number)

    confusion = tiny_confusion()
    for task in (0, 1, 2, NO_TASK):
        true = np.arange(4)
        bucket = confusion.draw(true, np.full(4, task), Fixed())  # type: ignore[arg-type]
        counts = confusion.overall if task == NO_TASK else confusion.by_task[task]
        for row, column in zip(true, bucket, strict=True):
            assert counts[row, column] > 0 or counts[row].sum() == 0
