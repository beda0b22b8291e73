"""With weights of 0 and 1 the relaxed fleet is the exact one."""

from __future__ import annotations

import cases
import numpy as np
import pytest

from relaxed.replay import one_hot_weights, play


@pytest.mark.parametrize("scheduler", cases.SCHEDULERS)
@pytest.mark.parametrize("seed", range(12))
def test_every_request_finishes_when_it_does_in_the_exact_simulator(scheduler: str, seed: int) -> None:
    case = cases.random_case(1000 + seed, scheduler=scheduler)
    _, records, _ = cases.run_jax(case)
    state, spent = play(case, one_hot_weights(case))
    rows = np.arange(len(case.table))
    copies = state.engines.copies
    step, offset = copies.finish.step[case.instance, rows], copies.finish.offset[case.instance, rows]
    np.testing.assert_allclose(step * case.dt + offset, records.finish_s, atol=2e-5)
    assert copies.preemptions[case.instance, rows].tolist() == records.preemptions.tolist()
    assert spent == pytest.approx(float((records.finish_s - case.table.arrival_s).sum()), rel=1e-4, abs=1e-3)
