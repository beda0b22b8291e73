import dataclasses

import numpy as np
import pytest

from fake_results import one_token_result, small_result
from jaxroute.live import frontend
from jaxroute.live.agreement import Preemptions, difference, differences, noise_floor, preemptions_at
from jaxroute.live.client import Completion
from jaxroute.live.frontend import TOKENS, measure_frontend
from jaxroute.profiles import load_profile


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
