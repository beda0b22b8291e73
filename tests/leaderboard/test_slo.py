"""Goodput on records worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fake_results import one_token_result, small_result
from jaxroute.errors import InputError
from jaxroute.slo import Slo, attained, goodput

# TTFT of the four requests of `small_result`: 1.5, 1.25, 1.5 and 2.5 s, the front end included.
# Mean time between their tokens: 0.5 s, none, 2 s and 0.5 s.


def test_a_request_is_served_well_within_both_bounds() -> None:
    np.testing.assert_array_equal(attained(small_result(), Slo(2.0, 1.0)), [True, True, False, False])
    assert goodput(small_result(), Slo(2.0, 1.0)) == 0.5


def test_the_bounds_themselves_are_kept() -> None:
    np.testing.assert_array_equal(attained(small_result(), Slo(1.5, 0.5)), [True, True, False, False])
    np.testing.assert_array_equal(attained(small_result(), Slo(2.5, 2.0)), [True] * 4)


def test_a_single_token_has_only_its_own_time() -> None:
    result = one_token_result()
    np.testing.assert_array_equal(attained(result, Slo(1.5, 1e-9)), [True, True, True, False])


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_is_a_number_above_0(bound: float) -> None:
    with pytest.raises(InputError, match="--slo-ttft"):
        Slo(ttft_s=bound)
    with pytest.raises(InputError, match="--slo-tbt"):
        Slo(tbt_s=bound)
