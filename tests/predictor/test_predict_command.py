"""`jaxroute predictor predict` and `show` as a user meets them."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxroute.cli import main
from jaxroute.predictor.predictor import Predictor
from tiny_predictor import tiny_folder, tiny_predictor

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "tiny"))


def refusal(capsys: Captured, *arguments: str) -> str:
    """The one line of a call that is refused."""
    with pytest.raises(SystemExit) as stop:
        main(["predictor", *arguments])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.strip()]
    return line


def test_prompts_are_predicted_in_a_table(capsys: Captured, model: str) -> None:
    main(["predictor", "predict", "tell me [red]a story[/]", "x" * 500, "a\udcffb", "--task", "chat", "--model", model])
    out = capsys.readouterr().out
    assert "tell me [red]a story[/]" in out
    assert "x" * 57 + "..." in out
    assert "a?b" in out
    assert out.count("chat (given)") == 3


def test_json_lines_go_in_and_come_out(capsys: Captured, model: str, tmp_path: Path) -> None:
    lines = [{"prompt": "who are you", "task": "qa_open"}, {"prompt": ""}, {"prompt": "tell \ud800", "id": 7}] * 30
    file = tmp_path / "prompts.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    main(["predictor", "predict", "--file", str(file), "--format", "json", "--model", model])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 91))
    alone = Predictor(tiny_predictor())
    for row, line in zip(rows, lines, strict=True):
        [estimate] = alone.predict([(str(line["prompt"]), "qa_open" if "task" in line else None)])
        assert (row["bucket"], row["tokens"], row["upper"]) == (estimate.bucket, estimate.tokens, estimate.upper)
        assert row["probability"] == pytest.approx(estimate.probability, abs=1e-4)
        assert (row["task"], row["task_source"]) == (estimate.task, estimate.task_source)


def test_standard_input_becomes_csv(capsys: Captured, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b'\xef\xbb\xbf{"prompt": "who"}\r\n\n{"prompt": "you", "task": "ner"}\n'
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    main(["predictor", "predict", "--file", "-", "--task", "chat", "--format", "csv", "--model", model])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["row"], row["task"], row["task_source"]) for row in rows] == [
        ("1", "chat", "given"),
        ("2", "ner", "given"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1: is no JSON ("),
        ('{"prompt": "a"}\n\n["a"]', "line 3: has no text called prompt; write {"),
        ('{"prompt": 3}', "line 1: has no text called prompt"),
        ('{"prompt": "a", "task": 3}', "line 1: task is 3, must be a text or left out"),
        ("\n \n", "holds no lines; give JSON lines such as"),
        ("[" * 100_000, "line 1: is no JSON ("),
    ],
)
def test_lines_that_are_no_prompts_are_named(
    capsys: Captured, model: str, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    assert message in refusal(capsys, "predict", "--file", str(file), "--model", model)


def test_calls_that_make_no_sense_are_refused(capsys: Captured, model: str, tmp_path: Path) -> None:
    assert "give prompts as arguments, or --file" in refusal(capsys, "predict", "--model", model)
    assert "give prompts as arguments, or --file" in refusal(capsys, "predict", "who", "--file", "x", "--model", model)
    assert "nowhere: no such folder; give default, or" in refusal(capsys, "predict", "who", "--model", "nowhere")
    (tmp_path / "tiny" / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file; a predictor folder" in refusal(capsys, "predict", "who", "--model", model)
    assert "gone.jsonl: no such file" in refusal(capsys, "predict", "--file", "gone.jsonl", "--model", model)


def test_a_predictor_is_shown(capsys: Captured, model: str) -> None:
    main(["predictor", "show", "--model", model])
    out = capsys.readouterr().out
    assert "DistilBERT, 2 layers of 16 units" in out
    assert "quantile-4: 1-9, 10-49, 50-199, 200+ output tokens" in out
    [row] = [line for line in out.splitlines() if line.startswith("│ qa_open")]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "qa_open", "360", "0.67", "0.75", "0.60", "0.60", "0.75", "50-199",
    ]  # fmt: skip


def test_a_prediction_is_timed(capsys: Captured, model: str) -> None:
    main(["predictor", "show", "--time", "--model", model])
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if line.startswith("500 prompts of 48 tokens, one by one: p50 ")]
    p50, p99 = (float(line.split(name)[1].split()[0]) for name in ("p50", "p99"))
    assert 0 < p50 <= p99
