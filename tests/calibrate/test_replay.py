"""One engine under the dispatches of a log: the simulator's own times, and their derivatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import request_logs as logs
from jaxroute.calibrate.log import read_request_log
from jaxroute.calibrate.model import ServerModel
from jaxroute.profiles import COEFFICIENTS

TRUE_S = np.asarray([[logs.TRUE.coefficients_ms[name] / 1e3 for name in COEFFICIENTS]])


def model_of(tmp_path: Path, requests: int, rate: float, kv_tokens: int | None = None) -> ServerModel:
    log = read_request_log(logs.write_log(logs.simulated(requests, rate, kv_tokens), tmp_path / "log.csv"))
    profile = logs.TRUE if kv_tokens is None else logs.TRUE.with_kv_tokens(kv_tokens)
    return ServerModel.create(log, [profile] * logs.SERVERS, ["chunked"] * logs.SERVERS)


@pytest.mark.parametrize("kv_tokens", [None, 2400])
def test_a_replay_gives_the_times_and_preemptions_of_the_simulation(tmp_path: Path, kv_tokens: int | None) -> None:
    model = model_of(tmp_path, 120, 6.0, kv_tokens)
    run, result = model(TRUE_S), logs.simulated(120, 6.0, kv_tokens)
    np.testing.assert_allclose(run.ttft_s[0], model.log.ttft_s, atol=1e-5)
    np.testing.assert_allclose(run.e2e_s[0], model.log.e2e_s, atol=1e-5)
    assert run.preemptions[0] == result.records.preemptions.sum()
    assert (run.preemptions[0] > 0) == (kv_tokens is not None)


def test_slower_by_a_share_in_every_coefficient_is_slower_by_it_in_the_anchored_derivative(tmp_path: Path) -> None:
    """All that a request waits for and runs in are steps: without the front end and the router, latency is time."""
    model = model_of(tmp_path, 120, 6.0)
    run = model(TRUE_S)
    since_dispatch = run.e2e_s[0] - model.log.waited_s
    np.testing.assert_allclose(run.e2e_slope[0].sum(-1), since_dispatch, rtol=2e-3)
    # Where an engine hardly rests, the pathwise derivative is that of all that ran before: far too much.
    assert (run.e2e_slope[0] + run.drift_slope[0]).sum(-1).mean() > 2 * since_dispatch.mean()


def test_anchored_derivatives_predict_what_a_slower_machine_does_better_than_pathwise_ones(tmp_path: Path) -> None:
    """At a load that leaves no queue, a change of 3 % in W."""
    model = model_of(tmp_path, 120, 3.0)
    shifts = np.ones((3, len(COEFFICIENTS)))
    shifts[1, 0], shifts[2, 0] = 1.03, 1 / 1.03
    run = model(TRUE_S * shifts)
    change = (run.e2e_s[1].mean() - run.e2e_s[2].mean()) / (2 * np.log(1.03))
    anchored = run.e2e_slope[0, :, 0].mean()
    pathwise = anchored + run.drift_slope[0, :, 0].mean()
    assert anchored == pytest.approx(change, rel=0.25)
    assert abs(pathwise - change) > 4 * abs(anchored - change)


def test_pathwise_derivatives_equal_differences_so_small_that_no_request_changes_its_step(tmp_path: Path) -> None:
    model = model_of(tmp_path, 24, 3.0)
    compared = 0
    for place, name in enumerate(COEFFICIENTS):
        shifts = np.ones((3, len(COEFFICIENTS)))
        shifts[1:, place] = 1 + 3e-5, 1 - 3e-5
        coefficients = (TRUE_S * shifts).astype(np.float32)
        run = model(coefficients)
        moved = np.log(coefficients[1, place].astype(np.float64) / coefficients[2, place])
        slope = run.e2e_slope[0, :, place] + run.drift_slope[0, :, place]
        change = run.e2e_s[1] - run.e2e_s[2]
        kept = np.abs(slope) * moved > 2e-6
        # A request that does change its step is off by a whole one.
        kept &= np.abs(change - slope * moved) < 1e-3
        # Latencies are float32: a few 1e-7 s for each request.
        if np.abs(slope[kept] * moved).sum() > 2e-4:
            np.testing.assert_allclose(change[kept].sum(), (slope * moved)[kept].sum(), rtol=2e-2, err_msg=name)
            compared += 1
    assert compared >= 3
