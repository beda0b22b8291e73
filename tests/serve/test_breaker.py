"""The circuit breaker and the state of health, without a clock."""

from __future__ import annotations

from jaxroute.serve.breaker import Breaker, Health


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(3, 30.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.may_try(0.0)
    for _ in range(3):
        breaker.failed(1.0)
    assert not breaker.may_try(30.9)


def test_one_request_tries_it_after_the_rest_and_decides() -> None:
    breaker = Breaker(1, 30.0)
    breaker.failed(0.0)
    assert breaker.may_try(30.0)
    breaker.started()
    assert not breaker.may_try(30.0)
    breaker.failed(31.0)
    assert not breaker.may_try(60.9)
    assert breaker.may_try(61.0)
    breaker.started()
    breaker.succeeded()
    assert breaker.may_try(61.0)


def test_a_trial_whose_client_leaves_lets_another_one_try() -> None:
    breaker = Breaker(1, 30.0)
    breaker.failed(0.0)
    assert breaker.may_try(30.0)
    breaker.started()
    breaker.undecided()
    assert breaker.may_try(30.0)


def test_a_backend_that_was_down_and_is_back_is_tried_at_once() -> None:
    breaker = Breaker(1, 30.0)
    breaker.failed(0.0)
    breaker.recovered()
    assert breaker.may_try(0.1)


def test_health_needs_several_failures_or_one_refusal() -> None:
    health = Health(2)
    assert not health.up
    assert health.passed()
    assert not health.passed()
    assert not health.failed()
    assert health.failed()
    assert not health.failed()
    assert health.passed()
    assert health.failed(refused=True)


def test_an_answer_to_an_earlier_request_does_not_close_it() -> None:
    breaker = Breaker(1, 30.0)
    breaker.failed(0.0)
    breaker.succeeded()
    assert not breaker.may_try(0.1)
