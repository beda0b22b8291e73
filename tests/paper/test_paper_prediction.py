"""Part (b): arithmetic on what is printed, the shipped predictor's record, and a measurement on some prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jaxroute.leaderboard.store import Store
from jaxroute.paper import prediction
from jaxroute.paper.part import QUICK, Context, Findings
from jaxroute.paper.printed_prediction import PRINTED, heavy_share, light_or_heavy, majority_by_task, majority_remarks
from tiny_prompts import prompt_rows, write_rows


def run(folder: Path, *prompts: Path) -> Findings:
    return prediction.PART.run(Context(folder, QUICK, 1_000_000, Store(folder / "cache"), prompts=prompts))


def test_naming_the_commoner_class_beats_what_the_paper_prints_without_the_task():
    assert 100 * heavy_share() == pytest.approx(35.54, abs=0.01)
    assert 100 * majority_by_task() == pytest.approx(68.1, abs=0.05)
    assert light_or_heavy(0.6) == light_or_heavy(0.4) == 0.6
    assert all(each.text < 100 * (1 - heavy_share()) for each in PRINTED if not each.hint)
    first, second = majority_remarks()
    assert "64.5 % of its prompts" in first
    assert "5.5 and 9.3 %" in second


def test_a_share_has_wilsons_interval():
    """Wilson's interval of 8 in 10, as Newcombe (1998) has it for such cases."""
    interval = prediction.share(0.8, 10)
    assert (interval.low, interval.value, interval.high) == pytest.approx((49.02, 80, 94.33), abs=0.01)


def test_without_prompts_it_says_so_and_shows_what_was_recorded(tmp_path: Path):
    findings = run(tmp_path)
    assert "No prompts with answers were given" in findings.setting[1]
    printed, recorded, majority = findings.tables
    assert [cell.text for cell in printed.rows[0].cells] == ["79.15", "73"]
    overall = recorded.rows[0].cells
    assert overall[0].value.value > overall[1].value.value
    assert overall[0].value.low < overall[0].value.value < overall[0].value.high
    assert majority.rows[-1].cells[2].text == "68.11"
    assert findings.cuts == ()
    assert [picture.name for picture in findings.pictures] == ["b-prediction"]


def test_with_prompts_the_four_rows_are_measured_beside_the_majority(tmp_path: Path):
    path = write_rows(tmp_path / "prompts.jsonl.gz", prompt_rows(120))
    findings = run(tmp_path, path)
    rows = {row.name: row.cells for row in findings.tables[0].rows}
    assert len(rows) == 8
    told = rows["unequal buckets, task told; all rows"]
    assert told[0].printed == 79.15
    assert told[1].text == "73"
    # Two of three kinds of prompts have answers below 250 tokens.
    assert 40 < told[2].value.value < 90
    assert told[4].text == "-"
    assert told[5].text == "20"
    assert findings.cuts
    assert len(findings.remarks) == 5
    assert "of the answers at hand are in the first unequal bucket" in findings.remarks[0]
    assert dataclasses.replace(run(tmp_path, path), pictures=()) == dataclasses.replace(findings, pictures=())
