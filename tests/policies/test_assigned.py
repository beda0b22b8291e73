from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.policies import heuristic
from jaxroute.policies.assigned import read_decisions
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, replay, simulate
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

TABLE = RequestTable.create([0.0, 0.01, 0.5], [10, 20, 30], [5, 6, 7], name="three")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "decisions.csv"
    path.write_text(text)
    return path


def test_decisions_are_read_for_every_request_in_any_order_with_other_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "note,request_id,instance\nx,2,1\ny,0,0\nz,1,3\n")
    decisions = read_decisions(path, TABLE, 4)
    assert decisions.instance.tolist() == [0, 3, 1]
    assert decisions.dispatch_s is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("request_id,server\n0,0\n", "line 1: no column 'instance'"),
        ("request_id,instance\n0,0\n1,0\n", "request 2 of the workload has no row"),
        ("request_id,instance\n0,0\n1,0\n2,0\n2,1\n", "line 5: request_id 2 is there twice"),
        ("request_id,instance\n9,0\n", "line 2: request_id 9 is not in the workload"),
        ("request_id,instance\n0,4\n", "line 2: instance is 4, must be a whole number from 0 to 3"),
        ("request_id,instance\n0,-1\n", "line 2: instance is -1"),
        ("request_id,instance\n0,abc\n", "line 2: instance is 'abc', must be a finite number"),
        (
            "request_id,instance,dispatch_s\n0,0,0\n1,0,0.001\n2,0,1\n",
            "line 3: dispatch_s is 0.001, before the request",
        ),
        ("request_id,instance,dispatch_s\n0,0,nan\n", "line 2: dispatch_s is 'nan'"),
        ("", "line 1: no column 'request_id'"),
    ],
)
def test_bad_decisions_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"decisions.csv: .*" + message.replace("(", r"\(")):
        read_decisions(written(tmp_path, text), TABLE, 4)


def test_replaying_a_run_gives_the_run_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = RequestTable.create(
        np.cumsum(rng.exponential(0.05, 80)), rng.integers(1, 300, 80), rng.integers(1, 100, 80), name="eighty"
    )
    fleet = Fleet((load_profile("v100-32gb-llama2-7b").with_kv_tokens(1600),) * 2, ("chunked",) * 2)
    prediction = predict(table, "oracle", seed=0)
    [original] = simulate(fleet, table, prediction, [heuristic("gated-central-queue")])
    records = original.records
    rows = [
        f"{request},{instance},{dispatch:.7f}"
        for request, instance, dispatch in zip(range(80), records.instance, records.dispatch_s, strict=True)
    ]
    rng.shuffle(rows)
    path = written(tmp_path, "\n".join(["request_id,instance,dispatch_s", *rows]))
    again = replay(fleet, table, read_decisions(path, table, 2), name="assigned", prediction=prediction)
    np.testing.assert_allclose(again.records.finish_s, records.finish_s, atol=1e-5)
    np.testing.assert_array_equal(again.records.instance, records.instance)
    np.testing.assert_array_equal(again.records.preemptions, records.preemptions)


def test_dispatches_in_another_order_than_the_arrivals_are_replayed_in_theirs(tmp_path: Path) -> None:
    path = written(tmp_path, "request_id,instance,dispatch_s\n0,0,2.0\n1,0,1.0\n2,1,0.5\n")
    fleet = Fleet((load_profile("v100-32gb-llama2-7b"),) * 2, ("chunked",) * 2)
    decisions = read_decisions(path, TABLE, 2)
    result = replay(fleet, TABLE, decisions, name="assigned", prediction=predict(TABLE, "oracle", seed=0))
    np.testing.assert_allclose(result.records.dispatch_s, [2.0, 1.0, 0.5], atol=1e-6)
    assert result.records.finish_s[1] < result.records.first_token_s[0]
    np.testing.assert_array_equal(result.table.request_id, [0, 1, 2])
