"""The decision log of a router on real sockets, read back: as a workload, and as decisions to replay."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recorded_run import SERVERS, record, record_with_trouble

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.policies.assigned import read_decisions
from jaxroute.profiles import load_profile
from jaxroute.serve.decision_log import LogRow, read_log
from jaxroute.workload.draws import Draws
from jaxroute.workload.traces import read_trace


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "decisions.jsonl"
    asyncio.run(record(path, count=40))
    return path


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trouble") / "decisions.jsonl"
    asyncio.run(record_with_trouble(path))
    return path


def in_order_of_arrival(path: Path) -> list[LogRow]:
    return sorted(read_log(path), key=lambda row: row.arrival_s)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return line


def simulated(log: Path, out: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    fixed = ["--profile", "v100-32gb-llama2-7b", "--instances", str(SERVERS), "--no-pictures", "--out", str(out)]
    main(["simulate", "--workload", str(log), *fixed, *arguments])
    return {path.name.split(".")[0]: rows_of(path) for path in out.glob("*.requests.csv")}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_log_is_a_workload_of_what_was_asked_for(log: Path) -> None:
    table, rows = read_trace(log), in_order_of_arrival(log)
    assert len(table) == len(rows) == 40
    np.testing.assert_allclose(table.arrival_s, [row.arrival_s - rows[0].arrival_s for row in rows], atol=1e-9)
    assert table.prompt_tokens.tolist() == [row.prompt_tokens for row in rows]
    assert table.output_tokens.tolist() == [row.output_tokens for row in rows]
    assert min(table.output_tokens) >= 3
    assert (table.name, table.task_names) == ("decisions.jsonl", ("none",))


def test_simulate_takes_it_and_replays_its_decisions(log: Path, tmp_path: Path) -> None:
    runs = simulated(log, tmp_path / "out", "--policy", f"round-robin,assigned:{log}", "--dt", "0.002")
    rows = in_order_of_arrival(log)
    replayed = runs["assigned"]
    assert [f"server-{row['instance']}" for row in replayed] == [row.backend for row in rows]
    waits = [float(row["router_wait_s"]) for row in replayed]
    # Later only by the router's interval, and by whoever was sent in it before.
    np.testing.assert_allclose(waits, [row.dispatch_s - row.arrival_s for row in rows], atol=0.02)
    assert [row["instance"] for row in runs["round-robin"]] != [row["instance"] for row in replayed]


def test_the_first_requests_of_a_log_can_be_replayed_alone(log: Path, tmp_path: Path) -> None:
    runs = simulated(log, tmp_path / "out", "--policy", f"assigned:{log}", "--requests", "10")
    expected = [row.backend for row in in_order_of_arrival(log)[:10]]
    assert [f"server-{row['instance']}" for row in runs["assigned"]] == expected


def test_evaluate_draws_from_it(log: Path) -> None:
    profile = load_profile("v100-32gb-llama2-7b")
    draws = Draws.create(str(log), profile=profile, requests=20, limits=(4096,), overlong="error")
    table, _ = draws.table(seed=1, rate=5.0)
    assert len(table) == 20
    assert table.mean_rate == pytest.approx(5.0)
    known = set(
        zip(*(getattr(read_trace(log), name).tolist() for name in ("prompt_tokens", "output_tokens")), strict=True)
    )
    assert set(zip(table.prompt_tokens.tolist(), table.output_tokens.tolist(), strict=True)) <= known


def test_retries_are_one_request_and_those_without_tokens_are_none(
    troubled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table = read_trace(troubled)
    rows = list(read_log(troubled))
    outcomes = [row.outcome for row in rows]
    assert outcomes.count("failed") == 1
    assert outcomes.count("aborted") == 1
    # Nine complete ones, and the one whose client went away, with what it had seen; no embedding.
    assert len(table) == 10
    assert table.output_tokens.tolist()[:9] == [5, 6, 7, 8, 9, 10, 20, 21, 22]
    assert 0 < table.output_tokens[9] < 5000
    assert table.output_tokens[9] == rows[-1].output_tokens
    assert table.task_names == ("chat", "none")
    assert table.task.tolist() == [0] * 6 + [1] * 4
    assert "left out 1 of 11 requests without known output" in caplog.text


def test_a_request_that_was_tried_twice_goes_where_it_was_served(troubled: Path) -> None:
    decisions = read_decisions(troubled, read_trace(troubled), 2)
    rows = list(read_log(troubled))
    retried = {row.id for row in rows if row.outcome == "failed"}
    served = {row.id: row.backend for row in rows if row.id in retried and row.outcome == "finished"}
    assert len(served) == len(retried) > 0
    kept = sorted((row for row in rows if row.output_tokens and row.outcome != "failed"), key=lambda row: row.arrival_s)
    assert [f"server-{number}" for number in decisions.instance] == [row.backend for row in kept]


def test_of_several_runs_the_latest_counts(log: Path, troubled: Path, tmp_path: Path, caplog) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(log.read_text() + troubled.read_text())
    with caplog.at_level(logging.WARNING):
        table = read_trace(both)
    later = log if max(row.run for row in read_log(log)) > max(row.run for row in read_log(troubled)) else troubled
    assert table.output_tokens.tolist() == read_trace(later).output_tokens.tolist()
    assert "of earlier runs of the router" in caplog.text


def test_a_packed_log_and_one_cut_off_by_a_crash_are_read(log: Path, tmp_path: Path) -> None:
    packed, cut = tmp_path / "log.jsonl.gz", tmp_path / "cut.jsonl"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    cut.write_text(log.read_text() + log.read_text()[:100])
    for path in (packed, cut):
        table = read_trace(path)
        assert len(table) == 40
        assert (
            read_decisions(path, table, SERVERS).instance.tolist()
            == read_decisions(log, table, SERVERS).instance.tolist()
        )


def changed(**fields: object) -> Callable[[str], str]:
    return lambda line: json.dumps({**json.loads(line), **fields})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:50] + "}", "line 3: not JSON"),
        (changed(format_version=9), "line 3: format_version is 9"),
        (lambda line: '{"format_version": 1, "decided_by": "policy"}', "line 3: lacks arrival_s, backend"),
        (changed(arrival_s="soon"), "line 3: arrival_s must be a number"),
        (changed(prompt_tokens=1.5), "line 3: prompt_tokens must be a whole number"),
        (changed(prompt_tokens=0), "line 3: prompt_tokens is 0, must be at least 1 token"),
        (changed(output_tokens=True), "line 3: output_tokens must be a whole number or null"),
        (changed(names="server-0"), "line 3: names must be a list"),
        (lambda line: line.replace('"arrival_s":', '"arrival_s":1e999,"x":'), "line 3: arrival_s must be a number"),
    ],
)
def test_a_line_that_is_none_is_named(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[str], str], message: str
) -> None:
    lines = log.read_text().splitlines()
    lines[2] = change(lines[2])
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(lines) + "\n")
    arguments = ["--profile", "v100-32gb-llama2-7b", "--out", str(tmp_path / "out"), "--policy", "round-robin"]
    line = refused(["simulate", "--workload", str(path), *arguments], capsys)
    assert line.startswith(f"jaxroute: {path}: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_decisions_of_other_requests_or_more_servers_are_refused(log: Path, troubled: Path) -> None:
    table = read_trace(log)
    with pytest.raises(
        InputError, match=r"chooses among 3 servers \(server-0, server-1, server-2\).*give --instances 3"
    ):
        read_decisions(log, table, 2)
    with pytest.raises(InputError, match="is replayed on its own requests: give --workload"):
        read_decisions(troubled, table, 3)
    with pytest.raises(InputError, match="line 1: lacks"):
        path = log.with_name("other.jsonl")
        path.write_text('{"format_version": 1}\n')
        read_decisions(path, table, 3)


def test_a_log_without_any_tokens_is_no_workload(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(changed(outcome="failed")(line) + "\n" for line in log.read_text().splitlines()))
    with pytest.raises(InputError, match="of no request is it known how many output tokens it had"):
        read_trace(path)
