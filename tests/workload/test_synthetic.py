from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import load_profile
from jaxroute.workload.synthetic import CLASSES, HL, LH, SETS, heavy_decode_tokens, synthetic, token_ranges

V100 = load_profile("v100-32gb-llama2-7b")


def prefill_s(tokens: int) -> float:
    return V100.step_ms([(int(tokens), 0)], []) / 1e3


def decode_s(tokens: int) -> float:
    return sum(V100.step_ms([], [context]) for context in range(1, int(tokens))) / 1e3


def test_thresholds_are_exact_on_the_profile() -> None:
    ranges = token_ranges(V100)
    assert prefill_s(ranges.heavy_prompt[0]) >= 0.5 > prefill_s(ranges.heavy_prompt[0] - 1)
    assert decode_s(ranges.heavy_decode[0]) >= 5.0 > decode_s(ranges.heavy_decode[0] - 1)
    # 20.4 ms a step at least: 5 s are at most 245 steps.
    assert 236 <= heavy_decode_tokens(V100, 5.0) <= 246


@pytest.mark.parametrize("name", SETS)
def test_each_class_is_on_its_side_of_both_thresholds(name: str) -> None:
    table = synthetic(name, 400, 4.0, 1, V100)
    for row in range(len(table)):
        kind = CLASSES[table.task[row]]
        assert (prefill_s(table.prompt_tokens[row]) >= 0.5) == (kind[0] == "H")
        assert (decode_s(table.output_tokens[row]) >= 5.0) == (kind[1] == "H")
    assert (table.prompt_tokens + table.output_tokens).max() <= V100.max_model_len


def test_phases_come_in_order_and_random_sets_are_mixed() -> None:
    assert synthetic("lh-then-hl", 10, 4.0, 1, V100).task.tolist() == [LH] * 5 + [HL] * 5
    assert synthetic("hl-then-lh", 10, 4.0, 1, V100).task.tolist() == [HL] * 5 + [LH] * 5
    two = synthetic("lh-hl-random", 4000, 4.0, 1, V100).task
    assert set(two) == {LH, HL}
    assert np.bincount(two, minlength=4)[HL] == pytest.approx(2000, abs=130)
    four = np.bincount(synthetic("all-random", 4000, 4.0, 1, V100).task, minlength=4)
    np.testing.assert_allclose(four, 1000, atol=110)


def test_thresholds_can_be_moved() -> None:
    easy = token_ranges(V100, heavy_prompt_s=0.1, heavy_decode_s=1.0)
    assert prefill_s(easy.heavy_prompt[0]) == pytest.approx(0.1, rel=0.01)
    assert decode_s(easy.heavy_decode[0]) == pytest.approx(1.0, rel=0.03)


def test_a_set_without_the_longest_class_fits_on_a_smaller_server() -> None:
    small = dataclasses.replace(V100, max_model_len=2600)
    assert synthetic("lh-then-hl", 50, 4.0, 1, small).prompt_tokens.max() <= 2600
    with pytest.raises(InputError, match="exceeds max_model_len"):
        synthetic("all-random", 50, 4.0, 1, small)


def test_a_server_that_cannot_hold_a_heavy_request_is_named_with_its_limit() -> None:
    with pytest.raises(InputError, match=r"v100-16gb.*exceeds the KV cache \(2320 tokens\)"):
        token_ranges(load_profile("v100-16gb-llama2-7b"))
    with pytest.raises(InputError, match=r"a100-80gb-llama2-7b.*exceeds max_model_len \(4096 tokens\)"):
        token_ranges(load_profile("a100-80gb-llama2-7b"))
    with pytest.raises(InputError, match="unknown synthetic set"):
        synthetic("lh", 10, 4.0, 1, V100)
