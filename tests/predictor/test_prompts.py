"""Prompt files are read into one table, and every damage is named by file and row."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.predictor.prompts import read_prompts
from tiny_prompts import prompt_rows, write_rows


def test_several_files_are_one_table_gzip_or_not(tmp_path: Path) -> None:
    rows = prompt_rows(12)
    table = read_prompts([write_rows(tmp_path / "a.jsonl", rows[:5]), write_rows(tmp_path / "b.jsonl.gz", rows[5:])])
    assert len(table) == 12
    assert table.prompt == tuple(row["prompt"] for row in rows)
    assert table.output_tokens.tolist() == [row["output_tokens"] for row in rows]
    assert table.tasks() == ("chat", "qa_open")


def test_filters_keep_the_rows_that_meet_all_of_them(tmp_path: Path) -> None:
    table = read_prompts([write_rows(tmp_path / "a.jsonl", prompt_rows(24))])
    assert len(table.where(split="test")) == 4
    assert set(table.where(exclude_source=["bound"]).source) == {"free"}
    both = table.where(split="train", task=["chat"], length_kind="llm", source=["free"])
    assert len(both) == 2
    assert set(both.task) == {"chat"}
    assert both.is_llm.all()
    assert len(table.where(group="group-3")) == 1


def test_what_a_row_may_lack_has_a_meaning(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "output_tokens": 3, "task": "chat", "split": "train"}] * 2
    table = read_prompts([write_rows(tmp_path / "a.jsonl", rows)])
    assert table.is_llm.all()
    assert table.group[0] != table.group[1]
    assert table.source.tolist() == ["", ""]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output_tokens": 0}, "row 2: output_tokens is 0, must be a whole number of at least 1"),
        ({"output_tokens": 2.5}, "row 2: output_tokens is 2.5"),
        ({"output_tokens": True}, "row 2: output_tokens is True"),
        ({"prompt": None}, "row 2: prompt is 'None', must be a text"),
        ({"split": "dev"}, "row 2: split is 'dev'; must be one of train, val, test"),
        ({"task": " "}, "row 2: task is empty"),
        ({"group": "group-0", "split": "val"}, "group 'group-0' is in the splits train and val"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    rows = prompt_rows(3)
    rows[1] |= change
    path = write_rows(tmp_path / "bad.jsonl", rows)
    with pytest.raises(InputError, match=r"bad\.jsonl") as error:
        read_prompts([path])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b'{"prompt": "a"', "row 1: is no JSON"),
        (b"[1]\n", "row 1: is no JSON object"),
        (b'{"prompt": "a"}', "row 1: task is missing"),
        (b"\xff\xfe", "not UTF-8"),
        (b"\x1f\x8bbroken", "broken gzip"),
    ],
)
def test_a_file_of_something_else_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts([tmp_path / "x.jsonl"])
    assert "\n" not in str(error.value)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_prompts([tmp_path / "none.jsonl"])
    with pytest.raises(InputError, match="no file given"):
        read_prompts([])


def test_the_shared_prompts_are_read(shared_data: Path) -> None:
    table = read_prompts([shared_data / "prompts" / "five_tasks.jsonl.gz"])
    assert [len(table.where(split=split)) for split in ("train", "val", "test")] == [19_593, 2_055, 3_290]
    assert int(table.where(split="test").is_llm.sum()) == 2_263
