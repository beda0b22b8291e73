"""Buckets of output lengths: which there are, what falls into each, and what each stands for."""

from __future__ import annotations

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.predictor.buckets import PAPER_FIRST, PAPER_RATIO, Buckets

LENGTHS = np.asarray([1, 2, 2, 3, 8, 20, 21, 40, 300, 700])


def test_equal_buckets_are_as_wide_as_each_other_and_end_with_the_longest_row() -> None:
    buckets = Buckets.equal_width(LENGTHS, 250)
    assert buckets.lower == (1, 250, 500)
    assert buckets.upper == (249, 499, 700)
    assert buckets.representative == (12, 300, 700)
    assert buckets.names() == ("1-249", "250-499", "500+")


def test_quantile_buckets_share_the_rows_evenly() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(1, 1001))
    buckets = Buckets.quantile(lengths, 5)
    assert np.bincount(buckets.bucket_of(lengths)).tolist() == [200] * 5
    assert buckets.lower == (1, 201, 401, 601, 801)
    assert buckets.representative == (100, 300, 500, 700, 900)


def test_rows_of_one_length_stay_together_and_leave_fewer_buckets() -> None:
    lengths = np.asarray([2] * 70 + [5] * 20 + [9] * 10)
    buckets = Buckets.quantile(lengths, 5)
    assert buckets.lower == (1, 3, 6)
    assert np.bincount(buckets.bucket_of(lengths)).tolist() == [70, 20, 10]


def test_geometric_buckets_widen_by_one_factor() -> None:
    lengths = np.arange(1, 5001)
    assert Buckets.geometric(lengths, 4, first=PAPER_FIRST, ratio=PAPER_RATIO).lower == (1, 250, 1000, 4000)
    fitted = Buckets.geometric(lengths, 5)
    assert fitted.lower[1] == 1001
    assert fitted.lower[-1] == 4000
    factors = np.divide(fitted.lower[2:], fitted.lower[1:-1])
    np.testing.assert_allclose(factors, (4000 / 1001) ** (1 / 3), rtol=1e-3)


def test_edges_belong_to_the_bucket_above_and_all_lengths_have_one() -> None:
    buckets = Buckets.from_edges("given", (1, 10, 100), LENGTHS)
    assert buckets.bucket_of(np.asarray([0, 1, 9, 10, 99, 100, 10**6])).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_a_bucket_without_rows_stands_for_its_middle() -> None:
    buckets = Buckets.from_edges("given", (1, 50, 100), LENGTHS)
    assert buckets.representative[1] == 74


def test_longer_outputs_than_a_server_gives_count_as_the_longest() -> None:
    buckets = Buckets.equal_width(LENGTHS, 250, most=400)
    assert buckets.upper == (249, 400)
    assert buckets.representative[1] == 350


def test_buckets_of_one_length_only_are_one() -> None:
    ones = np.ones(10, np.int64)
    for buckets in (Buckets.quantile(ones, 5), Buckets.equal_width(ones), Buckets.geometric(ones, 5)):
        assert (buckets.lower, buckets.representative, buckets.upper) == ((1,), (1,), (1,))


def test_what_is_no_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="must ascend from 1"):
        Buckets("mine", (2, 5), (3, 6), (4, 9))
    with pytest.raises(InputError, match="must end before the next bucket begins"):
        Buckets("mine", (1, 5), (3, 6), (5, 9))
    with pytest.raises(InputError, match="30 is to stand for 5 to 9 output tokens"):
        Buckets("mine", (1, 5), (3, 30), (4, 9))
    with pytest.raises(InputError, match="of one length above 0"):
        Buckets("mine", (), (), ())
    with pytest.raises(InputError, match="at least one output length"):
        Buckets.quantile(np.asarray([], np.int64), 5)
    with pytest.raises(InputError, match="1 asked for"):
        Buckets.quantile(LENGTHS, 1)
    with pytest.raises(InputError, match="first is 1"):
        Buckets.geometric(LENGTHS, 4, first=1, ratio=2.0)
