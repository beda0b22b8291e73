"""Predictor folders: what is written is what is read, and one line for what cannot be read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxroute.errors import InputError
from jaxroute.predictor.folder import digest, find_predictor, read_predictor, write_predictor
from jaxroute.predictor.predictor_file import PredictorFile, rounded_to_float16
from tiny_predictor import tiny_folder, tiny_predictor

FILES = ["predictor.json", "predictor.safetensors", "tokenizer.json"]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "tiny")


def facts_of(folder: Path) -> dict[str, object]:
    data = json.loads((folder / "predictor.json").read_text())
    assert isinstance(data, dict)
    return data


def change(folder: Path, **fields: object) -> None:
    """Other facts; None takes one out, and a field of an object is named with two underscores."""
    data = facts_of(folder)
    for name, value in fields.items():
        *parents, last = name.split("__")
        node = data
        for parent in parents:
            node = node[parent]  # type: ignore[assignment]
        if value is None:
            del node[last]
        else:
            node[last] = value
    (folder / "predictor.json").write_text(json.dumps(data))


def change_weights(folder: Path, name: str, array: np.ndarray | None) -> None:
    """Another tensor, with the digest that goes with it."""
    path = folder / "predictor.safetensors"
    tensors = load_file(path)
    tensors.pop(name, None)
    save_file(tensors if array is None else tensors | {name: array}, path)
    change(folder, sha256=facts_of(folder)["sha256"] | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})  # type: ignore[operator]


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_predictor(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same(one: PredictorFile, other: PredictorFile) -> None:
    apart = ("weights", "confusion")
    for field in dataclasses.fields(one):
        if field.name not in apart:
            assert getattr(one, field.name) == getattr(other, field.name)
    assert one.weights.keys() == other.weights.keys()
    for name, array in one.weights.items():
        assert other.weights[name].dtype == np.float32
        np.testing.assert_array_equal(array, other.weights[name])
    np.testing.assert_array_equal(one.confusion.overall, other.confusion.overall)
    np.testing.assert_array_equal(one.confusion.by_task, other.confusion.by_task)
    assert digest(one) == digest(other)


@pytest.mark.parametrize("hint", ["never", "optional", "required"])
def test_a_predictor_is_read_as_it_was_written(tmp_path: Path, hint: str) -> None:
    file = tiny_predictor(hint=hint)
    write_predictor(file, tmp_path / "deep" / "tiny")
    assert_same(file, read_predictor(tmp_path / "deep" / "tiny"))
    assert sorted(path.name for path in (tmp_path / "deep" / "tiny").iterdir()) == FILES
    assert digest(file) != digest(tiny_predictor(hint=hint, seed=1))


def test_in_float16_it_takes_half_and_is_still_the_same(tmp_path: Path) -> None:
    plain = tiny_predictor()
    half = dataclasses.replace(plain, weights=rounded_to_float16(plain.weights), float16=True)
    for name, file in (("plain", plain), ("half", half)):
        write_predictor(file, tmp_path / name)
        assert_same(file, read_predictor(tmp_path / name))
    sizes = [(tmp_path / name / "predictor.safetensors").stat().st_size for name in ("half", "plain")]
    assert sizes[0] < 0.6 * sizes[1]
    with pytest.raises(InputError, match="is to be float16, but its numbers are not rounded to it"):
        write_predictor(dataclasses.replace(plain, float16=True), tmp_path / "no")


def test_a_predictor_without_tasks_is_read_too(tmp_path: Path) -> None:
    plain = tiny_predictor(hint="never", tasks=False)
    confusion = dataclasses.replace(plain.confusion, by_task=np.zeros((0, 4, 4), np.int64))
    file = dataclasses.replace(plain, tasks=(), task_majority=(), confusion=confusion)
    write_predictor(file, tmp_path / "tiny")
    assert_same(file, read_predictor(tmp_path / "tiny"))


def test_the_json_says_what_the_predictor_is(written: Path) -> None:
    data = facts_of(written)
    assert data["format_version"] == 1
    assert data["tasks"] == ["qa_open", "ner", "chat"]
    assert data["buckets"] == {
        "kind": "quantile-4",
        "lower": [1, 10, 50, 200],
        "representative": [4, 25, 100, 400],
        "upper": [9, 49, 199, 900],
    }
    assert data["confusion"]["by_task"]["ner"][0] == [9, 1, 0, 0]  # type: ignore[index]
    assert data["features"][2:] == ["log1p(lines) / 8", "log(translation ratio)"]


def test_a_predictor_is_replaced_whole_and_anything_else_is_kept(written: Path) -> None:
    write_predictor(tiny_predictor(seed=1), written)
    assert digest(read_predictor(written)) == digest(tiny_predictor(seed=1))
    (written / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is no predictor folder, it holds notes.txt; give a new folder"):
        write_predictor(tiny_predictor(), written)
    assert digest(read_predictor(written)) == digest(tiny_predictor(seed=1))
    assert [path.name for path in written.parent.iterdir()] == ["tiny"]


def test_a_predictor_is_found_by_its_folder(written: Path) -> None:
    assert find_predictor(str(written)) == written
    run = tiny_folder(written.parent / "run" / "predictor").parent
    assert find_predictor(run) == run / "predictor"
    with pytest.raises(InputError, match="predictor nowhere: no such folder; give default, or a folder that"):
        find_predictor("nowhere")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(written: Path, name: str) -> None:
    (written / name).unlink()
    assert refusal(written) == (
        f"{written / name}: no such file; a predictor folder holds predictor.json, predictor.safetensors and "
        "tokenizer.json"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is 2, but this version reads 1; train it again"),
        ({"name": None}, "lacks name; take all files of a predictor from one training"),
        ({"hint": "maybe"}, "hint is 'maybe'; known: never, optional, required"),
        ({"hint": 3}, "hint must be a text"),
        ({"max_tokens": 49}, "max_tokens is 49, but the network has 48 positions"),
        ({"max_tokens": "many"}, "max_tokens must be a whole number"),
        ({"majority": 4}, "a most common bucket is 4, must be from 0 to 3"),
        ({"task_majority": [0, 1]}, "task_majority has 2 entries for 3 tasks"),
        ({"tasks": ["qa_open", "ner", "ner"]}, "tasks is ['qa_open', 'ner', 'ner'], must be names that differ"),
        ({"tasks": ["qa_open", "ner", "juggling"]}, "confusion: by_task: lacks juggling"),
        ({"features": ["phase of the moon"]}, "features is ['phase of the moon'], this version computes"),
        ({"float16": True}, "is to be float16, but its numbers are not rounded to it"),
        ({"buckets__lower": [1, 10, 5, 200]}, "buckets quantile-4: lower is [1, 10, 5, 200], must ascend from 1"),
        ({"buckets__upper": [9, 49, 199, 300]}, "400 is to stand for 200 to 300 output tokens"),
        ({"confusion__overall": [[1, 2], [3, 4]]}, "confusion.overall must hold counts [4, 4]"),
        ({"confusion__overall": [[1, 2], [3]]}, "overall must be lists of whole numbers of one length"),
        ({"confusion__overall": [[10**30] * 4] * 4}, "overall holds a number that is too large"),
        ({"confusion__by_task__ner": [[-1] * 4] * 4}, "confusion.by_task must hold counts [3, 4, 4]"),
        ({"confusion__by_task__ner": [[1] * 3] * 4}, "by_task: must hold counts [4, 4] of each task"),
        ({"config__pooling": "max"}, "config: pooling is 'max'; known: cls, mean"),
        ({"config__encoder__heads": 3}, "config: dim is 16, which 3 heads do not divide"),
        ({"config__encoder__dim": 1.5}, "config: encoder: dim must be a whole number"),
        ({"config__buckets": 5}, "the network has 5 buckets, 4 are described"),
        ({"config__tasks": 2}, "the network tells 2 tasks apart, 3 are named"),
        ({"config__head_hidden": 9}, "pre_classifier.weight is [8, 20], but the network needs [9, 20]"),
        ({"config__encoder__vocab_size": 100}, "word_embeddings.weight is [154, 16], but the network needs [100, 16]"),
        ({"training": 3}, "training must be an object"),
    ],
)
def test_facts_that_cannot_be_run_are_one_line(written: Path, fields: dict[str, object], message: str) -> None:
    change(written, **fields)
    assert message in refusal(written)
    assert refusal(written).startswith(str(written))


def test_a_required_hint_needs_a_head_that_predicts_the_task(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hint is required, but the network has no head that predicts tasks"):
        write_predictor(tiny_predictor(hint="required", tasks=False), tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("classifier.bias", None, "classifier.bias is missing; take all files"),
        ("extra.bias", np.zeros(1, np.float32), "extra.bias is no weight of this network"),
        ("classifier.bias", np.zeros(5, np.float32), "classifier.bias is [5], but the network needs [4]"),
        ("classifier.bias", np.full(4, np.inf, np.float32), "classifier.bias holds a number that is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named(written: Path, name: str, array: np.ndarray | None, message: str) -> None:
    change_weights(written, name, array)
    assert refusal(written).startswith(f"{written / 'predictor.safetensors'}: ")
    assert message in refusal(written)


def test_damaged_files_are_one_line(written: Path, tmp_path: Path) -> None:
    weights, tokenizer = written / "predictor.safetensors", written / "tokenizer.json"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "predictor.safetensors: the file ends within " in refusal(written)
    weights.write_bytes(content[:40])
    assert "predictor.safetensors: is no safetensors file" in refusal(written)
    weights.write_bytes((tiny_folder(tmp_path / "other", seed=1) / weights.name).read_bytes())
    assert "predictor.safetensors: is not the file that predictor.json was written with" in refusal(written)
    weights.write_bytes(content)
    tokenizer.write_text("{}")
    assert "tokenizer.json: is not the file that predictor.json was written with" in refusal(written)
    (written / "predictor.json").write_text("{")
    assert "predictor.json: is no JSON (" in refusal(written)


def test_a_tokenizer_with_more_words_than_the_network_is_refused(written: Path) -> None:
    path = written / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["elephant"] = 154
    path.write_text(json.dumps(data))
    sums = facts_of(written)["sha256"]
    change(written, sha256=sums | {path.name: hashlib.sha256(path.read_bytes()).hexdigest()})  # type: ignore[operator]
    assert "tokenizer.json: has 155 words, the network 154; take all files" in refusal(written)
