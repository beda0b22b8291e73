from __future__ import annotations

import numpy as np

from jaxroute.workload.chat import MOST_OUTPUT_TOKENS, MOST_PROMPT_TOKENS, chat


def test_lengths_have_the_stated_medians_and_spreads_and_stay_within_the_limits() -> None:
    table = chat(20_000, 4.0, seed=3)
    np.testing.assert_allclose(np.median(table.prompt_tokens), 600, rtol=0.05)
    np.testing.assert_allclose(np.median(table.output_tokens), 150, rtol=0.05)
    inner = np.log(np.percentile(table.output_tokens, [16, 84]))
    np.testing.assert_allclose((inner[1] - inner[0]) / 2, 0.9, rtol=0.05)
    assert table.prompt_tokens.min() >= 1
    assert table.prompt_tokens.max() == MOST_PROMPT_TOKENS
    assert table.output_tokens.max() == MOST_OUTPUT_TOKENS
    np.testing.assert_allclose(table.mean_rate, 4.0, rtol=0.03)


def test_a_seed_gives_the_same_requests_at_any_rate() -> None:
    slow, fast = chat(50, 1.0, seed=1), chat(50, 8.0, seed=1)
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)
    np.testing.assert_array_equal(slow.output_tokens, fast.output_tokens)
    assert not np.array_equal(slow.prompt_tokens, chat(50, 1.0, seed=2).prompt_tokens)
