from __future__ import annotations

import numpy as np
import pytest

from jaxroute.workload.five_task import LONG_TOKENS, TASK_NAMES, TASKS, five_task, output_lengths, prompt_lengths


@pytest.fixture(scope="module")
def big():
    return five_task(200_000, 20.0, seed=3)


@pytest.mark.parametrize("task", TASKS, ids=TASK_NAMES)
def test_the_printed_means_and_long_shares_hold_exactly_in_expectation(task) -> None:
    output, prompt = output_lengths(task), prompt_lengths(task)
    assert prompt.mean == pytest.approx(task.mean_prompt, abs=1e-6)
    assert output.mean == pytest.approx(task.mean_output, abs=1e-6)
    assert output.probability[output.tokens >= LONG_TOKENS].sum() == pytest.approx(task.long_share, abs=1e-9)
    assert output.probability.sum() == pytest.approx(1)
    assert prompt.tokens[[0, -1]].tolist() == [1, 1000]
    assert output.tokens[[0, -1]].tolist() == [1, 1024]


@pytest.mark.parametrize("index", range(5), ids=TASK_NAMES)
def test_a_big_draw_has_the_printed_figures_within_sampling_error(big, index: int) -> None:
    task, rows = TASKS[index], big.task == index
    share = task.samples / 31329
    assert rows.mean() == pytest.approx(share, abs=4 * np.sqrt(share / len(big)))
    for values, mean in ((big.prompt_tokens[rows], task.mean_prompt), (big.output_tokens[rows], task.mean_output)):
        assert values.mean() == pytest.approx(mean, abs=4 * values.std() / np.sqrt(len(values)))
    long = (big.output_tokens[rows] >= LONG_TOKENS).mean()
    assert long == pytest.approx(task.long_share, abs=4 * np.sqrt(task.long_share / rows.sum()))


def test_the_mix_has_the_papers_overall_means(big) -> None:
    assert big.prompt_tokens.mean() == pytest.approx(89.03, abs=0.8)
    assert big.output_tokens.mean() == pytest.approx(175.71, abs=1.5)
    assert big.mean_rate == pytest.approx(20, rel=0.01)


def test_the_same_seed_gives_the_same_requests_at_another_rate() -> None:
    slow, fast = five_task(500, 5.0, seed=7), five_task(500, 50.0, seed=7)
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)
    np.testing.assert_array_equal(slow.output_tokens, fast.output_tokens)
    np.testing.assert_allclose(slow.arrival_s, 10 * fast.arrival_s)
    other = five_task(500, 5.0, seed=8)
    assert (other.output_tokens != slow.output_tokens).mean() > 0.9
