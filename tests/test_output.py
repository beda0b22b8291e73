import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fake_results import one_token_result, queue_result, small_result
from jaxroute import metrics, output
from jaxroute.errors import InputError

HEADER = (
    "request_id,arrival_s,prompt_tokens,output_tokens,instance,dispatch_s,ttft_s,e2e_s,tbt_mean_s,tbt_max_s,"
    "router_wait_s,preemptions,instance_wait_s,recomputed_tokens,task"
)


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_requests_csv_of_a_run_worked_out_by_hand(tmp_path):
    output.write_requests_csv(small_result(), tmp_path / "round-robin.requests.csv")
    assert (tmp_path / "round-robin.requests.csv").read_bytes().decode().split("\n") == [
        HEADER,
        "10,1.0000000,100,5,0,1.0000000,1.5000000,3.5000000,0.5000000,1.0000000,0.0000000,0,0.2500000,0,chat",
        '11,1.5000000,200,1,1,2.0000000,1.2500000,1.2500000,,,0.5000000,0,0.0000000,0,"sum, short"',
        "12,2.0000000,300,4,0,2.0000000,1.5000000,7.5000000,2.0000000,3.0000000,0.0000000,2,0.5000000,640,chat",
        '13,2.0000000,50,3,0,3.0000000,2.5000000,3.5000000,0.5000000,0.7500000,1.0000000,1,0.5000000,60,"sum, short"',
        "",
    ]


def test_times_are_written_to_a_ten_millionth_of_a_second_even_late_in_a_run(tmp_path):
    result = queue_result("random", requests=30)
    late = result.table.replace(arrival_s=result.table.arrival_s + 86_400)
    records = dataclasses.replace(
        result.records, dispatch_s=result.records.dispatch_s + 86_400, start_s=result.records.start_s + 86_400
    )
    result = dataclasses.replace(result, table=late, records=records)
    output.write_requests_csv(result, tmp_path / "r.csv")
    rows = read_rows(tmp_path / "r.csv")
    written = np.array([[float(row[name]) for name in ("arrival_s", "dispatch_s", "instance_wait_s")] for row in rows])
    expected = np.stack([late.arrival_s, records.dispatch_s, metrics.instance_wait_s(result)], axis=1)
    np.testing.assert_allclose(written, expected, rtol=0, atol=0.5001e-7)


def test_a_wait_a_rounding_error_below_zero_is_written_as_zero(tmp_path):
    result = small_result(dispatch_s=np.array([1 - 1e-12, 2, 2, 3]))
    output.write_requests_csv(result, tmp_path / "r.csv")
    assert read_rows(tmp_path / "r.csv")[0]["router_wait_s"] == "0.0000000"


def test_workload_of_one_token_outputs_leaves_the_tbt_fields_empty(tmp_path):
    output.write_requests_csv(one_token_result(), tmp_path / "r.csv")
    rows = read_rows(tmp_path / "r.csv")
    assert [(row["tbt_mean_s"], row["tbt_max_s"]) for row in rows] == [("", "")] * 4
    assert [row["e2e_s"] for row in rows] == [row["ttft_s"] for row in rows]


def test_summary_json_holds_settings_and_one_summary_per_policy(tmp_path):
    summaries = [metrics.summarise(small_result(name)) for name in ("round-robin", "random")]
    settings = {"instances": np.int64(2), "out": Path("runs"), "loads": (0.5, float("inf")), "kv": np.arange(2)}
    output.write_summary_json(summaries, settings, tmp_path / "summary.json")
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["settings"] == {"instances": 2, "out": "runs", "loads": [0.5, None], "kv": [0, 1]}
    assert list(document["policies"]) == ["round-robin", "random"]
    assert document["policies"]["random"]["e2e_mean_s"] == 3.9375
    assert document["policies"]["random"]["action_share"] == [0.75, 0.25]
    assert "policy" not in document["policies"]["random"]


def test_summary_json_gives_each_number_against_the_reference_in_percent(tmp_path):
    base = metrics.summarise(small_result("round-robin"))
    other = dataclasses.replace(base, policy="random", e2e_mean_s=2 * base.e2e_mean_s, preemptions=0)
    output.write_summary_json([other, base], {}, tmp_path / "summary.json")
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["reference"] == "round-robin"
    change = document["change_percent"]["random"]
    assert (change["e2e_mean_s"], change["preemptions"], change["makespan_s"]) == (100.0, -100.0, 0.0)


def test_what_does_not_exist_is_null_in_the_summary_json(tmp_path):
    output.write_summary_json([metrics.summarise(one_token_result())], {}, tmp_path / "s.json")
    assert json.loads((tmp_path / "s.json").read_text())["policies"]["round-robin"]["tbt_mean_s"] is None


def test_two_runs_of_one_name_are_rejected_before_anything_is_written(tmp_path):
    summary = metrics.summarise(small_result())
    with pytest.raises(InputError, match=r"two runs are named 'round-robin'"):
        output.write_summary_json([summary, summary], {}, tmp_path / "s.json")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "r.csv"
    path.write_text("old")
    rows_seen = []

    def field_that_breaks_in_the_second_row(value):
        rows_seen.append(value)
        if value == 11:
            raise RuntimeError("disk full")
        return str(value)

    monkeypatch.setattr(output, "csv_field", field_that_breaks_in_the_second_row)
    with pytest.raises(RuntimeError, match="disk full"):
        output.write_requests_csv(small_result(), path)
    assert 11 in rows_seen
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"r.csv": "old"}


def test_a_setting_without_a_json_form_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "s.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        output.write_summary_json([metrics.summarise(small_result())], {"bad": object()}, path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"s.json": "old"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_until_the_block_has_ended_well(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), output.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "old"}
    with output.atomic_path(path) as temporary:
        temporary.write_text("new")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "new"}


def test_a_path_that_is_a_folder_leaves_no_temporary(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError), output.atomic_path(tmp_path / "taken") as temporary:
        temporary.write_text("new")
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
