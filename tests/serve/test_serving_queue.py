from __future__ import annotations

import numpy as np
import pytest

from jaxroute.serve.router_queue import Order, RouterQueue, Waiting
from jaxroute.serve.types import Incoming
from jaxroute.workload import five_task
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import predict


def waiting(id: str, arrival_s: float, predicted_tokens: int = 1) -> Waiting:
    return Waiting(Incoming(id, 10, predicted_tokens, arrival_s=arrival_s), frozenset(), arrival_s)


def drain(queue: RouterQueue) -> list[str]:
    ids = []
    while (head := queue.head()) is not None:
        ids.append(head.request.id)
        assert queue.leave(head.request.id) is head
    assert len(queue) == 0
    return ids


@pytest.mark.parametrize(("ageing", "edges"), [(5.0, ()), (0.0, ()), (3.2, (256,)), (20.0, (32, 64, 500))])
def test_shortest_predicted_is_the_simulators_order(ageing: float, edges: tuple[int, ...]) -> None:
    table = five_task(300, rate=10.0, seed=0)
    prediction = predict(table, "0.7", seed=1)
    workload = to_device(table, prediction, dt=0.02, ageing=ageing, spf_edges=edges)
    queue = RouterQueue(Order("shortest-predicted", ageing, edges))
    for number in range(300):
        queue.join(waiting(str(number), float(table.arrival_s[number]), int(prediction.tokens[number])))
    assert drain(queue) == [str(number) for number in np.argsort(np.asarray(workload.priority))]


def test_fcfs_goes_by_arrival_not_by_length_or_joining() -> None:
    queue = RouterQueue(Order())
    for id, arrival_s, tokens in (("b", 2.0, 1), ("c", 3.0, 5), ("a", 1.0, 900), ("d", 3.0, 1)):
        queue.join(waiting(id, arrival_s, tokens))
    assert drain(queue) == ["a", "b", "c", "d"]


def test_a_long_request_is_overtaken_until_it_has_aged() -> None:
    queue = RouterQueue(Order("shortest-predicted", ageing=10.0))
    queue.join(waiting("long", 0.0, 100))
    queue.join(waiting("short", 9.0, 5))
    queue.join(waiting("late", 9.9, 5))
    assert drain(queue) == ["short", "long", "late"]


def test_who_leaves_early_is_no_head_and_may_come_again() -> None:
    queue = RouterQueue(Order())
    for number in range(5):
        queue.join(waiting(str(number), float(number)))
    assert queue.leave("0").request.id == "0"
    assert queue.leave("0") is None
    assert "0" not in queue
    queue.join(waiting("0", 2.5))
    assert queue.longest_waiting().request.id == "1"
    assert [each.request.id for each in queue] == ["1", "2", "3", "4", "0"]
    assert drain(queue) == ["1", "2", "0", "3", "4"]


def test_requests_that_have_left_do_not_pile_up() -> None:
    queue = RouterQueue(Order())
    queue.join(waiting("first", 0.0))
    for number in range(10_000):
        queue.join(waiting(str(number), 1.0 + number))
        queue.leave(str(number))
    assert len(queue._heap) < 200
    assert queue.head().request.id == "first"
