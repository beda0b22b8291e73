import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fake_results import one_token_result, small_result
from jaxroute.live import frontend
from jaxroute.live.agreement import Preemptions, difference, differences, noise_floor, preemptions_at
from jaxroute.live.client import Completion, LiveError
from jaxroute.live.cluster import HeldSteps, LiveCluster
from jaxroute.live.fidelity import Measured, compare
from jaxroute.live.frontend import TOKENS, measure_frontend
from jaxroute.live.picture import fidelity_picture
from jaxroute.live.replay import LiveRun
from jaxroute.profiles import load_profile
from jaxroute.testbed.engine.step_hold import COLUMNS


def later(seconds: float):
    """`small_result` whose tokens all come so much later."""
    records = small_result().records
    return small_result(first_token_s=records.first_token_s + seconds, finish_s=records.finish_s + seconds)


def test_errors_are_the_simulators_in_percent_of_live():
    made = difference(np.array([1.0, 2.0, 3.0, 4.4]), np.array([1.0, 2.5, 3.0, 4.0]))
    assert made.live_s["mean"] == pytest.approx(2.625) and made.simulated_s["mean"] == pytest.approx(2.6)
    assert made.error_percent["mean"] == pytest.approx(100 * (2.6 / 2.625 - 1))
    assert made.error_percent["p50"] == pytest.approx(100 * (2.5 / 2.75 - 1))
    # Of 0, 20, 0 and 10 %.
    assert made.scatter_p50_percent == pytest.approx(5)
    assert made.correlation == pytest.approx(np.corrcoef([1, 2, 3, 4.4], [1, 2.5, 3, 4])[0, 1])


def test_a_later_run_differs_in_latency_but_not_between_tokens():
    made = differences(small_result(), later(0.25))
    # Mean E2E: 3.5, 1.25, 7.5, 3.5 s, and 0.25 s more each.
    assert made["e2e"].error_percent["mean"] == pytest.approx(100 * (3.9375 / 4.1875 - 1))
    assert made["tbt"].error_percent == {"mean": 0, "p50": 0, "p99": 0}
    assert made["tbt"].correlation == pytest.approx(1)


def test_requests_of_one_token_have_no_time_between_tokens():
    with pytest.raises(ValueError, match="no request"):
        differences(one_token_result(), one_token_result())


def test_noise_is_the_largest_difference_of_two_repeats():
    assert noise_floor([small_result()]) == {}
    noise = noise_floor([small_result(), later(0.25), later(0.5)])
    assert noise["e2e"]["mean"] == pytest.approx(100 * 0.5 / 3.9375)
    assert noise["tbt"]["mean"] == 0


def test_preemptions_are_counted_by_instance():
    assert preemptions_at(small_result()) == (3, 0)
    assert Preemptions((100, 0), (90, 13)).error_percent == pytest.approx(3)
    assert Preemptions((0, 0), (0, 0)).error_percent == 0
    assert np.isnan(Preemptions((0,), (1,)).error_percent)


def test_front_end_is_what_comes_on_top_of_the_steps(monkeypatch):
    profile = dataclasses.replace(load_profile("v100-32gb-llama2-7b"), frontend_ms=0.0)

    async def answer(session, url, body, tokens, headers=None):
        prompt = body.count(b",", body.index(b"["), body.index(b"]")) + 1
        steps = [profile.step_ms([(prompt, 0)], [])]
        steps += [profile.step_ms([], [prompt + number]) + 0.5 for number in range(1, tokens)]
        return Completion(10.0, 10.0 + (7.0 + np.cumsum(steps)) / 1e3, prompt)

    monkeypatch.setattr(frontend, "stream_completion", answer)
    coroutine = measure_frontend(None, ("a", "b"), "m", profile, np.array([10, 500, 9000]), probes=4)
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    made = stopped.value.value
    assert made.frontend_ms == pytest.approx(7, abs=1e-6)
    assert made.step_excess_ms == pytest.approx(0.5, abs=1e-6)
    assert made.probes == 8 and TOKENS > 3


def trace_of(path, *steps: tuple[float, float, float, float]):
    """A trace with (start s, target, held, work ms) of each step."""
    rows = [
        ",".join(map(str, (start, target, held, 0.0, work, *([0] * (len(COLUMNS) - 5)))))
        for start, target, held, work in steps
    ]
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return path


def test_steps_that_took_too_long_are_counted_within_the_run_alone(tmp_path):
    traces = (
        trace_of(tmp_path / "a.csv", (1.0, 20, 500, 500), (5.0, 20, 20.1, 4), (6.0, 20, 60, 60)),
        trace_of(tmp_path / "b.csv", (5.5, 30, 30.1, 4), (5.6, 30, 30.1, 4), (9.0, 30, 300, 300)),
    )
    cluster = LiveCluster(("a", "b"), "m", load_profile("v100-32gb-llama2-7b"), traces)
    held = cluster.held_steps(4.0, 8.0)
    assert (held.steps, held.overrun_share, held.longest_stall_ms) == (4, 0.25, 40)
    assert held.lost_share == pytest.approx(40 / 100)
    with pytest.raises(LiveError, match="holds no step"):
        cluster.held_steps(10.0, 11.0)
    assert dataclasses.replace(cluster, traces=()).held_steps(4.0, 8.0) is None


def test_a_run_whose_steps_overran_is_not_valid():
    run = LiveRun(small_result(), np.zeros(4), ("",) * 4, 0.0)
    good, bad = HeldSteps(100, 0.01, 5.0, 0.001), HeldSteps(100, 0.03, 80.0, 0.02)
    assert Measured(run, (0,), 0, good).faults == ()
    assert Measured(run, (0,), 7, bad).faults == ("3.0 % of the steps overran", "7 tokens came from a prefix cache")
    late = dataclasses.replace(run, late_s=np.full(4, 0.004))
    assert Measured(late, (0,), 0, None).faults == ("the client was late by 4.0 ms (p99)",)


def test_the_picture_has_room_for_requests_whose_tokens_came_at_once():
    case = SimpleNamespace(name="some-case")
    records = small_result().records
    live = small_result(finish_s=np.where(np.arange(4) == 3, records.first_token_s, records.finish_s))
    made = compare(case, small_result(), [Measured(LiveRun(live, np.zeros(4), ("",) * 4, 0.0), (3, 0), 0, None)])
    figure = fidelity_picture(made)
    above = [axes for axes in figure.axes if axes.get_xscale() == "log"]
    assert len(above) == 3
    for axes in above:
        low, high = axes.get_xlim()
        assert 0 < low < high < np.inf
