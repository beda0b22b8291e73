"""What the simulator does not have: tokens that are not seen, servers that say how much they hold, O(1) events."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from brains import PROFILE, request, servers

from jaxroute.observation import INSTANCE_FEATURES, instance_features
from jaxroute.serve.brain_settings import BrainSettings
from jaxroute.serve.config_file import read_config
from jaxroute.serve.decide import Brain
from jaxroute.serve.fleet_view import rows
from jaxroute.serve.tracker import Tracker
from jaxroute.serve.types import Metrics

STEP_S = PROFILE.step_ms([], [100]) / 1e3


def test_kv_tokens_are_what_the_server_says_or_its_profile() -> None:
    tracker = Tracker(servers(2))
    tracker.scraped("a", Metrics(3, 2, 0.5, kv_tokens=1234), 1.0)
    view = tracker.view(1.5)
    assert view.kv_tokens.tolist() == [1234, PROFILE.kv_tokens]
    assert (view.scraped_running.tolist(), view.scraped_waiting.tolist()) == ([3, 0], [2, 0])
    assert view.scraped_kv_usage.tolist() == [0.5, 0.0]
    assert view.signal_age_s.tolist() == [0.5, np.inf]
    assert view.scraped_age == 0.5


def test_the_age_of_the_signal_is_that_of_the_oldest_server_that_may_be_chosen() -> None:
    tracker = Tracker(servers(3))
    for name, when in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        tracker.scraped(name, Metrics(0, 0, 0.0), when)
    assert tracker.view(4.0).scraped_age == 3.0
    tracker.set_open("a", False)
    assert tracker.view(4.0).scraped_age == 2.0
    assert tracker.view(4.0, exclude=frozenset("b")).scraped_age == 1.0
    assert tracker.view(4.0, exclude=frozenset("b")).full.tolist() == [True, True, False]


def test_a_request_that_does_not_stream_gains_a_token_in_every_decode_step() -> None:
    tracker = Tracker(servers(1))
    tracker.dispatch(request("1", 1000, 80, streamed=False), "a", 0.0)
    prefill_s = PROFILE.step_ms([(1000, 0)], []) / 1e3
    before = tracker.view(0.9 * prefill_s)
    assert (before.awaiting_first[0], before.in_flight_tokens[0], before.predicted_tokens_left[0]) == (1, 1000, 80)
    first = tracker.view(1.01 * prefill_s)
    assert (first.awaiting_first[0], first.in_flight_tokens[0], first.predicted_tokens_left[0]) == (0, 1001, 79)
    # Whether it is looked at often or once.
    for now in np.linspace(prefill_s, prefill_s + 40.5 * STEP_S, 300):
        often = tracker.view(float(now))
    assert often.in_flight_tokens[0] == pytest.approx(1041, abs=2)
    assert often.least_predicted_left[0] == often.predicted_tokens_left[0]
    # No more than the most tokens of its bucket, however long it takes.
    late = tracker.view(1000.0)
    assert (late.in_flight_tokens[0], late.predicted_tokens_left[0]) == (1000 + 160, 0)
    tracker.end("1")
    assert (tracker.view(1000.0).in_flight_tokens[0], tracker.view(1000.0).in_flight[0]) == (0, 0)


def test_prompts_ahead_delay_the_estimated_first_token() -> None:
    tracker = Tracker(servers(1))
    for number in range(5):
        tracker.dispatch(request(str(number), 1000, 80, streamed=False), "a", 0.0)
    alone_s, per_token_s = PROFILE.step_ms([(1000, 0)], []) / 1e3, PROFILE.coefficients_ms["g"] / 1e3
    assert tracker.view(alone_s + 1e-3).awaiting_first[0] == 4
    assert tracker.view(alone_s + 4000 * per_token_s + 1e-3).awaiting_first[0] == 0


def test_seen_tokens_end_the_estimate() -> None:
    tracker = Tracker(servers(1))
    tracker.dispatch(request("1", 100, 80, streamed=False), "a", 0.0)
    assert tracker.tokens("1", 2) == 2
    assert tracker.view(100.0).in_flight_tokens[0] == 102
    assert tracker.tokens("unknown", 2) == 0


def test_huge_claims_of_clients_do_not_overflow() -> None:
    tracker = Tracker(servers(1))
    for number in range(100):
        tracker.dispatch(request(str(number), 10**8, 2**31 - 1), "a", 0.0)
    assert tracker.view(0.0).in_flight_tokens[0] == 10**10
    assert tracker.view(0.0).predicted_tokens_left[0] == 100 * (2**31 - 1)


def test_some_rows_of_a_view_are_those_of_a_smaller_fleet() -> None:
    large, small = Tracker(servers(4)), Tracker([servers(4)[1], servers(4)[3]])
    for tracker in (large, small):
        tracker.dispatch(request("1", 70), "d", 0.0)
        tracker.tokens("1", 3)
    kept = rows(large.view(1.0), np.asarray([False, True, False, True]))
    for name in ("in_flight_tokens", "awaiting_first", "full", "kv_tokens", "scraped_kv_usage"):
        np.testing.assert_array_equal(getattr(kept, name), getattr(small.view(1.0), name))
    assert kept.profile.step.W.shape == kept.profile.max_num_seqs.shape == (2,)
    assert kept.dispatched == 1


def test_an_event_costs_the_same_however_many_requests_are_in_flight() -> None:
    """CPU time of one thread; twenty times as many requests may not make it three times as long."""

    def cost(in_flight: int) -> float:
        tracker = Tracker(servers(4), bucket_edges=(1, 100))
        for number in range(in_flight):
            tracker.dispatch(request(str(number), 100, 10**6), "abcd"[number % 4], 0.0)
        best = np.inf
        for _ in range(5):
            started = time.thread_time()
            for number in range(2000):
                tracker.tokens(str(number % 200), 1)
            best = min(best, time.thread_time() - started)
        return best

    assert cost(4000) < 3 * cost(200)


def test_one_of_several_routers_shows_its_policy_what_the_others_have_there() -> None:
    rows_of = {}
    for router in (None, 0):
        tracker = Tracker(servers(2), router=router)
        tracker.dispatch(request("mine"), "a", 0.0)
        tracker.scraped("a", Metrics(1, 0, 0.1), 0.1)
        tracker.scraped("b", Metrics(5, 2, 0.6), 0.1)
        view = tracker.view(0.2, request("head"), 1)
        # What it knows itself stays as it is.
        assert view.in_flight.tolist() == [1, 0]
        rows_of[router] = instance_features(rows(view, np.array([True, True])), np)
    column = INSTANCE_FEATURES.index("requests in flight / max_num_seqs")
    assert rows_of[None][:, column].tolist() == pytest.approx([1 / PROFILE.max_num_seqs, 0])
    assert rows_of[0][:, column].tolist() == pytest.approx([1 / PROFILE.max_num_seqs, 7 / PROFILE.max_num_seqs])


def test_brain_and_configuration_say_that_servers_are_shared(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("backends: [http://c:1]\nshared: true\n")
    assert read_config(path).shared is True
    for shared in (False, True):
        brain = Brain(servers(2), BrainSettings(shared=shared), start_s=0.0)
        assert (brain.tracker.view(0.0).router is None) is not shared
