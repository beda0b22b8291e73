from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from brains import brain, only, place, request, scrape, servers

from jaxroute.errors import InputError
from jaxroute.policies.folder import DEFAULT_FOLDER, read_policy, write_policy
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.serve.decide import Brain, BrainSettings
from jaxroute.serve.types import HOLD, Metrics, Placement, Refused


def test_fewest_outstanding_tokens_counts_prompts_and_predicted_output() -> None:
    made = brain()
    assert place(made, request("1", 300, 50), 0.0).backend == "a"
    assert place(made, request("2", 10, 100), 0.0).backend == "b"
    assert place(made, request("3", 10, 30), 0.0).backend == "c"
    assert place(made, request("4", 10, 30), 0.0).backend == "c"
    made.first_token("1", 0.1)
    # Its prompt is done, and 40 of its tokens are out.
    made.tokens("1", 39, 0.2)
    assert [status.outstanding_tokens for status in made.status(0.2)] == [10, 110, 80]
    assert place(made, request("5"), 0.3).backend == "a"
    made.ended("2", 0.4, "finished", 60)
    assert [status.in_flight_tokens for status in made.status(0.4)] == [440, 0, 20]


def test_round_robin_goes_round_the_servers_that_may_be_chosen() -> None:
    made = brain("round-robin")
    assert [place(made, request(str(n)), 0.0).backend for n in range(4)] == ["a", "b", "c", "a"]
    made.set_open("b", False)
    assert {place(made, request(str(n)), 0.0).backend for n in range(4, 10)} == {"a", "c"}


def test_the_default_policy_decides_in_its_own_order_and_shows_what_it_saw() -> None:
    made = brain("default", count=4)
    assert made.order.name == "shortest-predicted"
    assert (made.order.ageing, made.order.spf_edges) == (made.policy.ageing, made.policy.spf_edges)
    assert made.tick_s == made.policy.dt
    decision = place(made, request(), 0.1).decision
    assert (decision.decided_by, decision.fallback, decision.shadow) == ("policy", None, None)
    assert decision.names == ("a", "b", "c", "d")
    assert decision.router_features.shape == (6,)
    assert decision.instance_features.shape == (4, 16)
    assert decision.scores.shape == (5,)
    assert decision.signal_age_s == pytest.approx(0.1)
    assert 0 < decision.decision_s < 1
    # Equal servers: the second request goes elsewhere.
    assert place(made, request("2"), 0.1).backend != place(made, request("3"), 0.1).backend


@pytest.mark.parametrize("policy", ["default", "fewest-outstanding-tokens", "round-robin"])
def test_closed_excluded_and_full_servers_get_nothing(policy: str) -> None:
    made = Brain(servers(4, max_in_flight=2), BrainSettings(policy=policy))
    scrape(made, 0.0)
    made.set_open("a", False)
    sent = [place(made, request(str(n)), 0.0, frozenset("b")).backend for n in range(4)]
    assert sorted(sent) == ["c", "c", "d", "d"]
    made.arrive(request("4"), 0.0, frozenset("b"))
    assert made.decide(0.0) == []
    assert made.counts["at-limit"] == 1
    made.ended("0", 0.1, "finished", 5)
    assert only(made.decide(0.1)).backend == sent[0]


def test_a_policy_is_not_shown_closed_servers() -> None:
    made = brain("default", count=3)
    made.set_open("b", False)
    decision = place(made, request(), 0.0).decision
    assert decision.names == ("a", "c")
    assert decision.instance_features.shape == (2, 16)
    assert decision.decided_by == "policy"


def policy_with(tmp_path: Path, **changes) -> str:
    write_policy(dataclasses.replace(read_policy(DEFAULT_FOLDER), **changes), tmp_path / "policy")
    return str(tmp_path / "policy")


def holding(policy: PolicyFile, bias: float) -> dict[str, np.ndarray]:
    return {**policy.weights, "hold_linear/bias": np.full(1, bias, np.float32)}


def test_a_held_request_waits_until_the_policy_lets_it_go(tmp_path: Path) -> None:
    """Holding is not allowed while a server is idle: a policy that always holds sends then only."""
    made = brain(policy_with(tmp_path, weights=holding(read_policy(DEFAULT_FOLDER), 1e3)), count=2)
    place(made, request("1"), 0.0)
    place(made, request("2"), 0.0)
    made.arrive(request("3"), 0.0)
    assert made.decide(0.0) == made.decide(0.02) == []
    assert made.counts["held"] == 2
    made.ended("2", 0.04, "finished", 3)
    placement = only(made.decide(0.04))
    assert (placement.backend, placement.dispatch_s) == ("b", 0.04)
    assert placement.router_wait_s == pytest.approx(0.04)


def test_stale_and_missing_signals_fall_back_and_are_counted() -> None:
    made = Brain(servers(), BrainSettings(stale_after_s=2.0))
    assert place(made, request("1"), 0.0).decision.fallback == "missing-signal"
    scrape(made, 0.0)
    assert place(made, request("2"), 1.9).decision.fallback is None
    decision = place(made, request("3"), 2.1).decision
    assert (decision.decided_by, decision.fallback) == ("fewest-outstanding-tokens", "stale-signal")
    assert decision.scores is None
    assert made.counts["fallback missing-signal"] == made.counts["fallback stale-signal"] == 1
    # Of one that is closed nobody asks.
    made.scraped("a", Metrics(0, 0, 0.0), 2.2)
    made.scraped("b", Metrics(0, 0, 0.0), 2.2)
    made.set_open("c", False)
    assert place(made, request("4"), 2.3).decision.fallback is None


def test_features_out_of_the_trained_range_fall_back() -> None:
    made = brain("default")
    policy = made.policy
    limit = policy.scales.router_mean[2] + 20 * policy.scales.router_std[2]
    assert place(made, request("1", int(1000 * limit) - 5, 5), 0.0).decision.fallback in (None, "out-of-range")
    decision = place(made, request("2", int(1000 * limit) + 5), 0.0).decision
    assert decision.fallback == "out-of-range"
    assert decision.router_features[2] == pytest.approx(limit, rel=1e-3)
    assert decision.scores is None
    assert Brain(servers(), BrainSettings(range_limit=1e9)).settings.range_limit == 1e9


def test_a_failing_policy_falls_back(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = brain("default")

    def fail(observed: object) -> None:
        raise FloatingPointError("no")

    monkeypatch.setattr(made._judge._runner, "logits", fail)
    for number in range(3):
        decision = place(made, request(str(number)), 0.0).decision
        assert (decision.decided_by, decision.fallback) == ("fewest-outstanding-tokens", "policy-error")
        assert decision.router_features is not None
    assert made.counts["fallback policy-error"] == 3
    # Counted each time, logged once.
    assert caplog.text.count("FloatingPointError: no") == 1


def test_scores_and_features_that_are_not_finite_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = brain("default")
    monkeypatch.setattr(made._judge._runner, "logits", lambda observed: np.asarray([0, np.nan, 0, 0], np.float32))
    assert place(made, request("1"), 0.0).decision.fallback == "non-finite"
    scrape(made, 0.0, Metrics(0, 0, float("nan")))
    decision = place(made, request("2"), 0.0).decision
    assert (decision.fallback, decision.scores) == ("non-finite", None)


def test_in_shadow_mode_the_heuristic_decides_and_the_policys_choice_stands_beside_it(tmp_path: Path) -> None:
    folder = policy_with(tmp_path, weights=holding(read_policy(DEFAULT_FOLDER), 1e3))
    made = brain(folder, count=2, shadow="round-robin")
    assert made.order.name == "fcfs"
    decisions = [place(made, request(str(number)), 0.0) for number in range(3)]
    assert [placement.backend for placement in decisions] == ["a", "b", "a"]
    assert {placement.decision.decided_by for placement in decisions} == {"round-robin"}
    assert decisions[2].decision.shadow == HOLD
    assert decisions[2].decision.scores is not None
    made.ended("1", 0.0, "finished", 1)
    # The round is at b, which is idle.
    assert place(made, request("4"), 0.0).decision.shadow == "b"
    assert made.counts["shadow-agrees"] + made.counts["shadow-differs"] == 4
    scrape(made, -100.0)
    assert place(made, request("5"), 0.0).decision.shadow is None
    assert (made.counts["shadow-fallback stale-signal"], made.counts["fallback stale-signal"]) == (1, 0)


def test_the_queue_is_bounded_and_says_when_to_come_again() -> None:
    made = Brain(servers(1, max_in_flight=1), BrainSettings(policy="round-robin", max_queue=3))
    for number in range(10):
        place(made, request(f"done {number}"), float(number))
        made.ended(f"done {number}", number + 0.5, "finished", 5)
    place(made, request("running"), 10.0)
    for number in range(3):
        made.arrive(request(str(number)), 10.0)
    with pytest.raises(Refused, match="queue-full") as refused:
        made.arrive(request("3"), 10.0)
    # One a second, and three wait.
    assert refused.value.retry_after_s == 3.0
    assert made.queue_length == 3
    assert made.counts["refused queue-full"] == 1


def test_who_waits_too_long_is_refused() -> None:
    made = Brain(servers(1, max_in_flight=1), BrainSettings(policy="round-robin+spf", max_wait_s=5.0))
    place(made, request("running"), 0.0)
    made.arrive(request("long", predicted_tokens=900), 1.0)
    made.arrive(request("short"), 3.0)
    assert made.decide(5.9) == []
    [(id, refused)] = made.decide(6.0)
    assert (id, refused.reason) == ("long", "wait-limit")
    made.ended("running", 6.1, "finished")
    assert only(made.decide(6.1)).request.id == "short"


def test_without_an_open_server_requests_are_refused_at_once_and_taken_again_when_one_opens() -> None:
    made = Brain(servers(2, max_in_flight=1), BrainSettings(policy="round-robin"))
    place(made, request("1"), 0.0)
    place(made, request("2"), 0.0)
    made.arrive(request("3"), 0.0)
    made.set_open("a", False)
    made.set_open("b", False)
    refused = only(made.decide(0.0))
    assert (refused.reason, refused.retry_after_s) == ("no-backend", 1.0)
    with pytest.raises(Refused, match="no-backend"):
        made.arrive(request("4"), 0.0)
    made.set_open("a", True)
    with pytest.raises(Refused, match="no-backend"):
        made.arrive(request("5"), 0.0, frozenset("a"))
    made.ended("1", 0.0, "failed")
    assert place(made, request("6"), 0.0).backend == "a"


def test_a_retry_keeps_its_arrival_and_its_place() -> None:
    made = Brain(servers(2, max_in_flight=1), BrainSettings(policy="round-robin"))
    first = place(made, request("1"), 1.0)
    place(made, request("2"), 1.5)
    made.arrive(request("3"), 2.0)
    assert made.ended("1", 3.0, "failed").output_tokens is None
    made.arrive(first.request, 3.0, frozenset([first.backend]))
    # It came first and is the head, but may not go where there is room.
    assert made.decide(3.0) == []
    made.ended("2", 4.0, "finished", 1)
    outcomes = made.decide(4.0)
    assert [(id, outcome.backend) for id, outcome in outcomes] == [("1", "b"), ("3", "a")]
    assert outcomes[0][1].router_wait_s == 3.0


def test_a_reload_keeps_what_is_known_of_a_server() -> None:
    made = brain("fewest-outstanding-tokens", count=2)
    assert [place(made, request(str(n)), 0.0).backend for n in range(2)] == ["a", "b"]
    made.set_open("b", False)
    new = [servers(3)[2], servers(3)[1]]
    made.set_backends(new)
    assert [(s.name, s.in_flight, s.is_open, s.signal_age_s) for s in made.status(1.0)] == [
        ("c", 0, True, np.inf),
        ("b", 1, False, 1.0),
    ]
    # The one that is gone still ends properly.
    made.tokens("0", 3, 1.0)
    assert made.ended("0", 2.0, "finished").output_tokens == 3
    with pytest.raises(InputError, match="backend c: is given twice"):
        made.set_backends([new[0], new[0]])


def test_events_of_unknown_requests_change_nothing_and_ids_are_unique() -> None:
    made = brain()
    before = made.status(0.0)
    made.first_token("x", 0.0)
    made.tokens("x", 3, 0.0)
    made.withdraw("x")
    made.set_open("x", False)
    made.scraped("x", Metrics(1, 1, 0.5), 0.0)
    assert made.ended("x", 0.0, "finished", 4) is None
    assert made.status(0.0) == before
    place(made, request("1"), 0.0)
    with pytest.raises(ValueError, match="request 1: is waiting or in flight already"):
        made.arrive(request("1"), 0.0)
    made.ended("1", 0.0, "finished")
    made.first_token("1", 0.0)
    assert made.status(0.0) == before
    assert isinstance(place(made, request("1"), 0.0), Placement)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: default, fewest-outstanding-tokens, round-robin, a policy folder"):
        brain("least-kv")
    with pytest.raises(InputError, match="unknown heuristic 'default'"):
        BrainSettings(shadow="default")
    with pytest.raises(InputError, match="max_queue is 0"):
        BrainSettings(max_queue=0)
    with pytest.raises(InputError, match="max_wait_s is nan"):
        BrainSettings(max_wait_s=float("nan"))
    with pytest.raises(InputError, match="spf_edges"):
        brain("round-robin+spf", spf_edges=(5, 3))
    assert brain("round-robin+spf", ageing=2.0, spf_edges=(64,)).order.ageing == 2.0
