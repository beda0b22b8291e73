"""`--prediction confusion`: the simulator's routers are told what the length predictor would have told them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.length_edges import bucket_of
from jaxroute.workload import five_task
from jaxroute.workload.prediction import DEFAULT_EDGES, predict, predictor_of
from jaxroute.workload.table import RequestTable
from tiny_predictor import BUCKETS, tiny_folder


@pytest.fixture
def model(tmp_path: Path) -> str:
    return f"confusion:{tiny_folder(tmp_path / 'tiny')}"


def table_of(tasks: tuple[str, ...], output_tokens: int, count: int = 4000) -> RequestTable:
    """Requests of the tasks in turn, all of one output length."""
    return RequestTable.create(
        np.arange(count, dtype=np.float64),
        np.full(count, 10),
        np.full(count, output_tokens),
        name="made-up",
        task=np.arange(count) % len(tasks),
        task_names=tasks,
    )


def test_each_request_is_mistaken_as_its_task_was(model: str) -> None:
    table = table_of(("chat", "juggling", "QA-open"), 30)
    prediction = predict(table, model, seed=0)
    chat, juggling, open_questions = (prediction.tokens[table.task == task] for task in range(3))
    assert set(chat.tolist()) == {BUCKETS.representative[2]}
    right = [np.mean(tokens == BUCKETS.representative[1]) for tokens in (juggling, open_questions)]
    np.testing.assert_allclose(right, [60 / 110, 0.6], atol=0.04)


def test_a_workload_without_tasks_is_mistaken_as_all_rows_were(model: str) -> None:
    prediction = predict(table_of(("none",), 30), model, seed=0)
    shares = [np.mean(prediction.tokens == tokens) for tokens in BUCKETS.representative]
    np.testing.assert_allclose(shares, np.asarray([20, 60, 30, 0]) / 110, atol=0.03)


def test_lengths_are_the_predictors_and_buckets_those_of_the_simulator(model: str) -> None:
    table = five_task(500, 10.0, 0)
    prediction = predict(table, model, seed=0)
    assert set(prediction.tokens.tolist()) == set(BUCKETS.representative)
    bounds = dict(zip(BUCKETS.representative, BUCKETS.upper, strict=True))
    assert prediction.upper.tolist() == [bounds[tokens] for tokens in prediction.tokens.tolist()]
    np.testing.assert_array_equal(prediction.bucket, bucket_of(prediction.tokens, DEFAULT_EDGES))
    coarse = predict(table, model, seed=0, edges=(1, 100))
    np.testing.assert_array_equal(coarse.tokens, prediction.tokens)
    assert set(coarse.bucket.tolist()) == {0, 1}


def test_the_mistakes_are_those_of_the_seed(model: str) -> None:
    table = five_task(200, 10.0, 0)
    one, again, other = (predict(table, model, seed=seed).tokens for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_requests_that_are_left_out_take_their_tasks_with_them(model: str) -> None:
    table = table_of(("chat", "juggling"), 30)
    chats = table.take(table.task == 0)
    assert set(predict(chats, model, seed=0).tokens.tolist()) == {BUCKETS.representative[2]}


def test_which_predictor_is_meant() -> None:
    assert [predictor_of(name) for name in ("confusion", "confusion:a:b", "oracle", "0.8")] == [
        "default",
        "a:b",
        None,
        None,
    ]


def test_a_predictor_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^predictor nowhere: no such folder; give default, or a folder that"):
        predict(five_task(2, 10.0, 0), "confusion:nowhere", seed=0)


def test_simulate_and_evaluate_take_it(model: str, tmp_path: Path) -> None:
    servers = ["--profile", "v100-32gb-llama2-7b", "--prediction", model, "--instances", "2"]
    common = ["--requests", "40", "--out"]
    policies = "min-min,round-robin+spf"
    main(
        [
            "simulate",
            *servers,
            "--workload",
            "five-task",
            "--policy",
            policies,
            "--no-pictures",
            *common,
            str(tmp_path / "one"),
        ]
    )
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert model in json.dumps(summary)
    options = ["--workloads", "five-task", "--policies", "round-robin,min-min", "--loads", "0.7", "--seeds", "2"]
    main(["evaluate", *servers, *options, *common, str(tmp_path / "two")])
    assert len((tmp_path / "two" / "evaluation.csv").read_text().splitlines()) == 5


def test_a_configuration_of_the_training_takes_it(model: str) -> None:
    from jaxroute.train.load_config import load_config

    config = load_config("five-task", [f'workloads.predictions=["0.8", "{model}"]'])
    assert config.workloads.predictions == ("0.8", model)
    with pytest.raises(InputError, match="predictor nowhere: no such folder"):
        load_config("five-task", ['workloads.predictions=["confusion:nowhere"]'])
