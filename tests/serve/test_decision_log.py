from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from brains import brain, place, request

from jaxroute.errors import InputError
from jaxroute.serve.decision_log import DecisionLog, LogRow, read_log


def test_a_row_says_what_was_seen_decided_and_came_of_it(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    made = brain("default", count=4)
    placement = place(made, request("1", task="translation", predicted_bucket=2, arrival_s=0.5), 0.75)
    made.first_token("1", 1.0)
    made.tokens("1", 6, 2.0)
    with DecisionLog(path) as log:
        log.write(made.ended("1", 2.5, "finished"))
    [row] = read_log(path)
    expected = {
        "id": "1",
        "arrival_s": 0.5,
        "prompt_tokens": 100,
        "output_tokens": 7,
        "predicted_tokens": 50,
        "predicted_bucket": 2,
        "predicted_upper": 100,
        "task": "translation",
        "streamed": True,
        "backend": placement.backend,
        "dispatch_s": 0.75,
        "ttft_s": 0.5,
        "e2e_s": 2.0,
        "outcome": "finished",
        "decided_by": "policy",
        "fallback": None,
        "shadow": None,
        "names": ["a", "b", "c", "d"],
        "signal_age_s": 0.75,
    }
    assert {name: getattr(row, name) for name in expected} == expected
    decision = placement.decision
    np.testing.assert_allclose(row.router_features, decision.router_features, rtol=1e-6)
    np.testing.assert_allclose(row.instance_features, decision.instance_features, rtol=1e-6)
    # Nothing is idle but allowed: hold is not.
    np.testing.assert_allclose(row.scores, decision.scores, rtol=1e-6)


def rows_of(path: Path, count: int) -> list[LogRow]:
    made = brain("round-robin")
    with DecisionLog(path) as log:
        for number in range(count):
            place(made, request(f"{path.stem} {number}"), float(number))
            log.write(made.ended(f"{path.stem} {number}", number + 1.0, "aborted"))
    assert log.lost == 0
    return list(read_log(path))


def test_rows_are_appended_in_the_order_of_the_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert [row.id for row in rows_of(path, 500)] == [f"log {number}" for number in range(500)]
    [*_, last] = rows_of(path, 2)
    assert (last.id, last.outcome, last.output_tokens, last.ttft_s) == ("log 1", "aborted", None, None)
    assert (last.router_features, last.scores) == (None, None)
    rows = list(read_log(path))
    assert len(rows) == 502
    # Two runs, whose clocks have nothing to do with each other.
    assert len({row.run for row in rows[:500]}) == len({row.run for row in rows[500:]}) == 1
    assert rows[0].run < rows[-1].run


def test_a_line_cut_off_by_a_crash_is_left_out_and_new_keys_are_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    rows_of(path, 3)
    lines = path.read_text().splitlines()
    newer = json.dumps({**json.loads(lines[1]), "added": 1})
    path.write_text("\n".join([lines[0], newer, lines[2][:50]]))
    assert [row.id for row in read_log(path)] == ["log 0", "log 1"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("3", "line 2: format_version is None"),
        ('{"format_version": 9}', "line 2: format_version is 9, but this version reads 1"),
        ('{"format_version": 1, "id": "1"}', "line 2: lacks arrival_s, backend, decided_by"),
    ],
)
def test_a_foreign_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "log.jsonl"
    rows_of(path, 1)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        list(read_log(path))


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl: cannot be read"):
        list(read_log(tmp_path / "nowhere.jsonl"))
    with pytest.raises(InputError, match="cannot be written"):
        DecisionLog(tmp_path / "no folder" / "log.jsonl")


def test_numbers_that_are_not_finite_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = brain("default")
    scores = np.asarray([1, np.nan, -np.inf, 0], np.float32)
    monkeypatch.setattr(made._judge._runner, "logits", lambda observed: scores)
    place(made, request("1"), 0.0)
    with DecisionLog(tmp_path / "log.jsonl") as log:
        log.write(made.ended("1", 1.0, "failed"))
    [row] = read_log(tmp_path / "log.jsonl")
    assert row.scores == [1.0, None, None, 0.0]
    assert row.fallback == "non-finite"


def test_a_writer_that_cannot_keep_up_loses_rows_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = brain("round-robin")
    place(made, request("1"), 0.0)
    end = made.ended("1", 1.0, "finished")
    log = DecisionLog(tmp_path / "log.jsonl")

    def full(text: str) -> None:
        raise OSError("no space left")

    log._file.close()
    monkeypatch.setattr(log, "_file", type("Full", (), {"write": staticmethod(full), "close": lambda self: None})())
    for _ in range(3):
        log.write(end)
    log.close()
    assert log.lost == 3
    assert caplog.text.count("no space left") == 1
