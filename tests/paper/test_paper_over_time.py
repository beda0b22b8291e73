"""Parts (d) and (e): numbers of runs worked out by hand, tables and remarks of made-up runs, and one tiny real run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fake_results import queue_result, small_result, small_timeline
from jaxroute.candidates import candidate
from jaxroute.leaderboard.store import Store
from jaxroute.paper import tbt, timelines, waiting
from jaxroute.paper.compare import name_of
from jaxroute.paper.part import QUICK, Context
from jaxroute.paper.partitions import Spread
from jaxroute.paper.timelines import MainRun, main_run, numbers_of

SEEDS = (1_000_000, 1_000_001, 1_000_002)
AS = {"round-robin": "round-robin", "baseline": "random", "guided": "gated-central-queue"}
"""Which crude policy stands for which of the paper's."""


def context_of(folder: Path, **effort: object) -> Context:
    effort = {"seeds": len(SEEDS), "requests": 40, "train_steps": 1000, **effort}
    return Context(folder, dataclasses.replace(QUICK, **effort), SEEDS[0], Store(folder / "cache"))


@pytest.fixture(scope="module")
def found() -> MainRun:
    runs = {
        name: [json.loads(json.dumps(numbers_of(queue_result(crude, requests=150, seed=seed)))) for seed in SEEDS]
        for name, crude in AS.items()
    }
    return MainRun(timelines.setting(150), SEEDS, runs, ("dqn: left out",))


def test_the_numbers_of_a_run_are_those_of_its_requests():
    result = dataclasses.replace(small_result(), timeline=small_timeline(), dt_s=0.5)
    numbers = numbers_of(result)
    # Mean TBT of the three requests of more than one token: 2 / 4, 6 / 3 and 1 / 2 s.
    assert numbers["tbt_mean_s"] == pytest.approx(1)
    assert numbers["tbt_sd_s"] == pytest.approx(np.std([0.5, 2, 0.5]))
    assert numbers["router_wait_s"] == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    assert numbers["instance_wait_s"] == pytest.approx((0.25 + 0 + 0.5 + 0.5) / 4)
    assert numbers["waiting_mean"] == pytest.approx(5 / 6)
    assert numbers["waiting_max"] == 4
    assert numbers["preemptions"] == 3
    assert numbers["makespan_s"] == 8
    assert numbers["recomputed_share"] == pytest.approx(700 / 663)
    assert len(numbers["waiting_series"]) == timelines.SERIES_BINS


def test_series_keep_what_was_there():
    result = queue_result("gated-central-queue", requests=150)
    numbers = numbers_of(result)
    series = np.asarray(numbers["router_queue_series"])
    assert series.mean() == pytest.approx(numbers["router_queue_mean"], rel=0.05)
    assert max(numbers["spike_series_s"]) <= max(numbers["longest_gap_series_s"])
    assert np.all(np.diff(numbers["tbt_quantiles_s"]) >= 0)
    assert np.all(np.diff(numbers["tbt_by_arrival"]["arrival_s"]) > 0)


@pytest.mark.parametrize("part", [tbt, waiting], ids=["tbt", "waiting"])
def test_a_part_has_a_row_for_each_policy_with_intervals(part, found, tmp_path, monkeypatch):
    monkeypatch.setattr(part, "main_run", lambda context: found)
    shared = Spread(-1.0, 2.0, 3.0, 5.0, 0.5)
    monkeypatch.setattr(tbt, "spreads", lambda context, scheduler: [shared] * len(SEEDS))
    findings = part.PART.run(context_of(tmp_path))
    assert findings == dataclasses.replace(part.PART.run(context_of(tmp_path)), pictures=findings.pictures)
    for table in findings.tables[:2]:
        assert [row.name for row in table.rows] == [name_of(name) for name in AS]
        assert table.command == f"jaxroute paper --out DIR --parts {part.PART.letter}"
        for row in table.rows:
            for cell in row.cells:
                assert cell.value is None or cell.value.low <= cell.value.value <= cell.value.high
    assert "dqn: left out" in findings.setting
    assert {picture.name[:2] for picture in findings.pictures} == {f"{part.PART.letter}-"}
    assert len(findings.pictures) == 2
    assert all("nan" not in text for text in (*findings.remarks, *findings.setting))


def test_waits_stand_beside_the_printed_ones(found):
    [table, queues] = waiting._waits_table(found, "", ""), waiting._queues_table(found, "", "")
    printed = {row.name: row.cells[0].printed for row in table.rows}
    assert printed == {name_of("round-robin"): None, name_of("baseline"): 0.59, name_of("guided"): 2.05}
    mean = np.mean([run["router_wait_s"] for run in found.runs["guided"]])
    assert table.rows[2].cells[0].value.value == pytest.approx(mean)
    assert table.rows[2].cells[0].differs is (
        not table.rows[2].cells[0].value.low <= 2.05 <= table.rows[2].cells[0].value.high
    )
    assert queues.rows[0].cells[4].value.value == np.mean([run["preemptions"] for run in found.runs["round-robin"]])


def with_numbers(found: MainRun, **changes: dict[str, float]) -> MainRun:
    """The runs with numbers of some policies replaced."""
    runs = {name: [{**run, **changes.get(name, {})} for run in own] for name, own in found.runs.items()}
    return dataclasses.replace(found, runs=runs)


def test_remarks_follow_the_records(found):
    early = with_numbers(
        found,
        **{
            "round-robin": {"tbt_early_s": 1.0, "tbt_late_s": 2.0, "tbt_sd_s": 0.5},
            "baseline": {"tbt_early_s": 1.1, "tbt_late_s": 1.5, "tbt_sd_s": 0.4},
            "guided": {"tbt_early_s": 1.2, "tbt_late_s": 1.0, "tbt_sd_s": 0.1},
        },
    )
    texts = tbt.remarks(early)
    assert "So it is here" in texts[0]
    assert "+10.0 % [+10.0, +10.0] early, -25.0 %" in texts[0]
    assert f"Here it is with {name_of('guided')} (100.0 ms" in texts[1]
    late = with_numbers(early, guided={"tbt_early_s": 0.9, "tbt_late_s": 1.0, "tbt_sd_s": 0.6})
    assert "It is not so here" in tbt.remarks(late)[0]
    assert f"Here it is with {name_of('baseline')}" in tbt.remarks(late)[1]


def test_the_order_of_the_waits_is_compared_with_the_papers(found):
    same = with_numbers(found, baseline={"router_wait_s": 1.0}, guided={"router_wait_s": 2.0})
    assert waiting.remarks(same)[0].endswith("the same order.")
    other = with_numbers(found, baseline={"router_wait_s": 3.0}, guided={"router_wait_s": 2.0})
    assert waiting.remarks(other)[0].endswith("another order.")
    assert "hold more than the paper's" in waiting.remarks(other)[1]


def test_the_printed_makespan_leaves_requests_waiting(found):
    """2,000 (1 - 100 / 173.1) = 845 are left after 100 s, 211 an instance, of which 128 run."""
    assert (
        "845 are left then, 211 for each of 4 instances, which run 128 at most: 83 must wait"
        in waiting.remarks(found)[-1]
    )


def test_the_main_run_is_kept_and_only_what_is_new_is_simulated(tmp_path, monkeypatch):
    policies = [
        dataclasses.replace(candidate(name), name=shown)
        for shown, name in (("round-robin", "round-robin"), ("guided", "least-kv"))
    ]
    monkeypatch.setattr(timelines, "entrants", lambda context, names: (policies[:count], ()))
    asked = []
    results = timelines._results
    monkeypatch.setattr(
        timelines, "_results", lambda setting, new, seed: asked.append((seed, len(new))) or results(setting, new, seed)
    )
    context, count = context_of(tmp_path, seeds=2), 2
    first = main_run(context)
    assert asked == [(SEEDS[0], 2), (SEEDS[1], 2)]
    assert first.policies == ("round-robin", "guided")
    assert main_run(context).runs == first.runs
    assert len(asked) == 2
    assert first.column("guided", "makespan_s").shape == (2,)
    # The same numbers as those of a run of one's own.
    [alone] = results(first.setting, policies[:1], SEEDS[1])
    assert json.loads(json.dumps(numbers_of(alone))) == first.runs["round-robin"][1]
    assert f"--seed {SEEDS[0]}" in first.simulate_command()
