"""An evaluation: which rows there are, what they hold, and the files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.predictor.evaluation import Evaluation, evaluate
from jaxroute.predictor.predictor import Predictor
from jaxroute.predictor.prompts import PromptTable, read_prompts
from jaxroute.predictor.report import four_rows_table, task_table, write_evaluation
from tiny_predictor import tiny_folder, tiny_predictor
from tiny_prompts import prompt_rows, write_rows


@pytest.fixture
def table(tmp_path: Path) -> PromptTable:
    return read_prompts([write_rows(tmp_path / "rows.jsonl", prompt_rows(60))])


def find(evaluation: Evaluation, hint: bool, rows: str, task: str = "all") -> dict[str, object]:
    (row,) = [
        each
        for each in evaluation.rows
        if (each.buckets, each.task_hint, each.rows, each.task) == ("quantile-4", hint, rows, task)
    ]
    return vars(row)


def test_top1_is_what_the_predictor_says_of_test_rows_and_no_others(table: PromptTable) -> None:
    file = tiny_predictor()
    found = evaluate(file, table, linear=False)
    test = table.where(split="test")
    said = [each.bucket for each in Predictor(file).predict([*zip(test.prompt, test.task, strict=True)])]
    right = np.asarray(said) == file.buckets.bucket_of(test.output_tokens)
    assert find(found, True, "all")["n"] == 10
    assert find(found, True, "all")["top1"] == pytest.approx(right.mean())
    assert find(found, True, "llm")["top1"] == pytest.approx(right[test.is_llm].mean())
    assert find(found, True, "all", "chat")["top1"] == pytest.approx(right[test.task == "chat"].mean())
    assert np.trace(found.confusions[True].overall) == right.sum()
    np.testing.assert_array_equal(found.confusions[True].by_task.sum(axis=0), found.confusions[True].overall)


def test_the_papers_four_rows_are_there(table: PromptTable) -> None:
    found = evaluate(tiny_predictor(), table, linear=False)
    kinds = {(row.buckets, row.derived, row.task_hint) for row in found.rows if row.rows == row.task == "all"}
    assert kinds == {
        (name, derived, hint)
        for name, derived in (("quantile-4", False), ("unequal-250", True), ("equal-512", True))
        for hint in (True, False)
    }


def test_baselines_are_fitted_on_training_rows(table: PromptTable) -> None:
    row = find(evaluate(tiny_predictor(), table), False, "all")
    buckets = tiny_predictor().buckets
    train, test = (buckets.bucket_of(table.where(split=name).output_tokens) for name in ("train", "test"))
    assert row["majority"] == pytest.approx(np.mean(test == np.bincount(train).argmax()))
    # A word of each prompt says how long its answer is.
    assert row["linear"] >= 0.9


@pytest.mark.parametrize("hint", ["never", "required"])
def test_every_kind_of_hint_is_measured(table: PromptTable, hint: str) -> None:
    found = evaluate(tiny_predictor(hint=hint), table, linear=False)
    assert {row.task_hint for row in found.rows} == ({False} if hint == "never" else {False, True})


def test_files_and_tables_hold_the_same(table: PromptTable, tmp_path: Path) -> None:
    found = evaluate(tiny_predictor(), table, linear=False)
    write_evaluation(tmp_path / "out", found)
    rows = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["task"] for row in rows] == ["all"] * 12
    assert rows[0].keys() >= {"buckets", "task_hint", "rows", "n", "top1", "macro_f1", "off_by_one", "majority"}
    assert rows[0]["linear"] is None
    assert {task["task"] for task in rows[0]["tasks"]} == {"qa_open", "chat"}
    with (tmp_path / "out" / "evaluation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(found.rows)
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(four_rows_table(found), task_table(found))
    assert f"{rows[0]['top1']:.3f}" in console.export_text()


def test_rows_that_lack_a_split_are_refused(table: PromptTable) -> None:
    with pytest.raises(InputError, match="no row of the split train"):
        evaluate(tiny_predictor(), table.where(split="test"))


def test_the_command_writes_and_says_why_the_papers_figures_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, model = write_rows(tmp_path / "rows.jsonl", prompt_rows(60)), tiny_folder(tmp_path / "model")
    asked = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "out"), "--no-linear"]
    main(["predictor", "evaluate", *asked])
    assert "Llama-2-7B" in capsys.readouterr().out
    assert (tmp_path / "out" / "evaluation.json").is_file()
