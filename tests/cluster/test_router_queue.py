from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.policies import expand_names, heuristic
from jaxroute.policies.assigned import Decisions
from jaxroute.policies.kv_based import GatedCentralQueue
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, replay, simulate
from jaxroute.workload.device import to_device
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import Prediction, predict
from jaxroute.workload.table import RequestTable

V100 = load_profile("v100-32gb-llama2-7b")


def run(table: RequestTable, tokens: list[int], ageing: float) -> list[int]:
    """The order in which a one-at-a-time router sends requests of these predicted lengths."""
    fleet = Fleet((V100,), ("chunked",), router_order="shortest-predicted", ageing=ageing)
    predicted = np.asarray(tokens)
    one_at_a_time = GatedCentralQueue(kv_share=0.0)
    [result] = simulate(fleet, table, Prediction(np.zeros_like(predicted), predicted, predicted), [one_at_a_time])
    assert (np.diff(np.sort(result.records.dispatch_s)) > 0).all()
    return np.argsort(result.records.dispatch_s).tolist()


def test_the_shortest_predicted_goes_first_and_ties_go_by_arrival() -> None:
    table = RequestTable.create([0.0, 0.01, 0.01, 0.01, 0.01], [20] * 5, [30] * 5, name="five")
    assert run(table, [50, 90, 20, 70, 20], ageing=0.0) == [0, 2, 4, 3, 1]


def test_ageing_lets_a_long_request_that_has_waited_pass_a_short_one_that_came_later() -> None:
    table = RequestTable.create([0.0, 0.1, 0.5], [20] * 3, [100] * 3, name="three")
    assert run(table, [50, 60, 50], ageing=0.0) == [0, 2, 1]
    assert run(table, [50, 60, 50], ageing=20.0) == [0, 2, 1]
    assert run(table, [50, 60, 50], ageing=30.0) == [0, 1, 2]


def test_priorities_are_ranks_of_prediction_less_aged_waiting() -> None:
    table = RequestTable.create([0.0, 1.0, 2.0], [1] * 3, [9] * 3, name="three")
    predicted = np.asarray([30, 20, 5])
    prediction = Prediction(predicted, predicted, predicted)
    assert to_device(table, prediction, dt=0.02, ageing=0.0).priority.tolist() == [2, 1, 0]
    assert to_device(table, prediction, dt=0.02, ageing=12.0).priority.tolist() == [1, 2, 0]
    assert to_device(table, prediction, dt=0.02, ageing=100.0).priority.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="ageing is -1"):
        to_device(table, prediction, dt=0.02, ageing=-1.0)


def test_with_edges_classes_are_ranked_and_a_class_goes_by_arrival() -> None:
    table = RequestTable.create([0.0, 1.0, 2.0, 3.0, 4.0], [1] * 5, [9] * 5, name="five")
    predicted = np.asarray([600, 256, 90, 255, 10])
    prediction = Prediction(predicted, predicted, predicted)

    def ranks(edges: tuple[int, ...], ageing: float) -> list[int]:
        return to_device(table, prediction, dt=0.02, ageing=ageing, spf_edges=edges).priority.tolist()

    assert ranks((), 0.0) == [4, 3, 1, 2, 0]
    # Two long ones and three short ones.
    assert ranks((256,), 0.0) == [3, 4, 0, 1, 2]
    # 256 and 356 against 200, 300 and 400: a long one waits for what comes within 2.56 s.
    assert ranks((256,), 100.0) == [1, 3, 0, 2, 4]
    # Rounded down to 300, 100, 0, 100 and 0.
    assert ranks((100, 300), 0.0) == [4, 2, 0, 3, 1]
    for edges in ((0, 5), (5, 5), (5, 4), (-1,), (2**31,)):
        with pytest.raises(InputError, match=r"spf_edges is .* must be numbers of tokens above 0 that ascend"):
            to_device(table, prediction, dt=0.02, spf_edges=edges)


def test_a_router_that_never_holds_sends_in_arrival_order_whatever_the_queue() -> None:
    """With at most one request in the queue at a time there is nothing to reorder."""
    table = five_task(150, 4.0, seed=2)
    fleet = Fleet((V100,) * 2, ("prefill-first",) * 2)
    shortest = dataclasses.replace(fleet, router_order="shortest-predicted")
    prediction = predict(table, "oracle", seed=0)
    policies = [heuristic("join-shortest-queue")]
    one, other = (simulate(each, table, prediction, policies)[0].records for each in (fleet, shortest))
    together = np.ceil(table.arrival_s / 0.02)
    if len(set(together)) == len(together):
        np.testing.assert_allclose(one.finish_s, other.finish_s, atol=1e-6)
    assert abs(one.finish_s - other.finish_s).mean() < 0.05


def test_a_gated_queue_in_shortest_order_serves_everyone_and_halves_the_mean_when_starved() -> None:
    table = five_task(600, 20.0, seed=5)
    fleet = Fleet((V100.with_kv_tokens(3800),) * 4, ("chunked",) * 4)
    shortest = dataclasses.replace(fleet, router_order="shortest-predicted")
    prediction = predict(table, "0.8", seed=0)
    gate = [heuristic("gated-central-queue")]
    fcfs, spf = (simulate(each, table, prediction, gate)[0].records for each in (fleet, shortest))
    assert (spf.finish_s > table.arrival_s).all()
    assert (spf.finish_s - table.arrival_s).mean() < 0.75 * (fcfs.finish_s - table.arrival_s).mean()


def test_names_take_the_suffix_and_replays_refuse_the_order() -> None:
    assert expand_names(["random+spf"]) == ["random+spf"]
    assert len(expand_names(["all", "all+spf"])) == 26
    assert heuristic("least-kv+spf").name == "least-kv+spf"
    with pytest.raises(InputError, match=r"unknown policy 'best\+spf'"):
        expand_names(["best+spf"])
    with pytest.raises(InputError, match="unknown order of the router queue 'lifo'"):
        Fleet((V100,), ("chunked",), router_order="lifo").config(1, records=False)
    table = five_task(5, 1.0, seed=0)
    fleet = Fleet((V100,), ("chunked",), router_order="shortest-predicted")
    with pytest.raises(ValueError, match="in the order fcfs"):
        replay(fleet, table, Decisions(np.zeros(5, int), None), name="x", prediction=predict(table, "none", seed=0))
