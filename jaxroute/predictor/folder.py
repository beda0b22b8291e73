"""A predictor folder on disk: `predictor.json`, `predictor.safetensors` and `tokenizer.json`; read without jax."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np

from jaxroute import whole_folder
from jaxroute.errors import InputError
from jaxroute.json_fields import Fields, parse_object
from jaxroute.predictor.buckets import Buckets
from jaxroute.predictor.confusion import Confusion
from jaxroute.predictor.predictor_file import FORMAT_VERSION, RETRAIN, PredictorFile, check_predictor
from jaxroute.predictor.shape import DistilBertConfig, Pooling, PredictorConfig
from jaxroute.predictor.weights import bytes_of, tensors_of
from jaxroute.whole_folder import read_file, write_folder

FACTS, WEIGHTS, TOKENIZER = "predictor.json", "predictor.safetensors", "tokenizer.json"

SAME_TRAINING = "take all files of a predictor from one training"

RUN_PREDICTOR = "predictor"
"""Folder of a training run that holds its best predictor."""

DEFAULT = "default"
"""Name of the predictor that ships with the package."""


def find_predictor(name: str | Path) -> Path:
    """The folder that a name stands for: the shipped predictor's for `default`, else itself or that of a training run.

    Raises:
      InputError: there is no predictor.
    """
    shipped = str(name) == DEFAULT
    path = Path(__file__).parent / DEFAULT if shipped else Path(name)
    if not path.is_dir():
        known = "none ships with this version; give" if shipped else f"no such folder; give {DEFAULT}, or"
        raise InputError(f"predictor {name}: {known} a folder that `jaxroute predictor train` wrote")
    current = path / RUN_PREDICTOR
    return current if not (path / FACTS).exists() and (current / FACTS).exists() else path


def read_predictor(path: str | Path) -> PredictorFile:
    """Reads a predictor folder and checks all of it.

    Raises:
      InputError: names the file, the tensor if it is one, and the remedy: missing, damaged, of another version, or one
        that cannot be run.
    """
    facts, weights, tokenizer = (Path(path) / name for name in (FACTS, WEIGHTS, TOKENIZER))
    data = parse_object(_read(facts), facts, SAME_TRAINING)
    # Before anything else is asked of it: another version may have other fields.
    if (version := data.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{facts}: format_version is {version!r}, but this version reads {FORMAT_VERSION}; {RETRAIN}")
    contents = {weights: _read(weights), tokenizer: _read(tokenizer)}
    # A file that is cut says where; the digests then find every other change.
    tensors = tensors_of(contents[weights], str(weights))
    fields = Fields(data, str(facts), SAME_TRAINING)
    for file, content in contents.items():
        if hashlib.sha256(content).hexdigest() != fields.within("sha256").text(file.name):
            raise InputError(f"{file}: is not the file that {FACTS} was written with; {SAME_TRAINING}")
    text = contents[tokenizer].decode("utf-8", "replace")
    predictor = _predictor(fields, {name: np.asarray(array, np.float32) for name, array in tensors.items()}, text)
    check_predictor(predictor, str(facts), str(weights), str(tokenizer))
    return predictor


def write_predictor(file: PredictorFile, path: str | Path) -> None:
    """Writes a predictor folder, in place of the predictor that may be there; it is there whole or not at all.

    Raises:
      InputError: something else is in the way, or the predictor is one that `read_predictor` would refuse.
      OSError: the folder above cannot be made or written.
    """
    target, place = Path(path).resolve(), f"predictor {file.name}"
    check_predictor(file, place, place, place)
    files = _encoded(file)
    check_replaceable(target)
    write_folder(files, target)


def check_replaceable(path: Path) -> None:
    """Raises InputError where something other than a predictor folder would be lost by writing one to `path`."""
    whole_folder.check_replaceable(path, (FACTS, WEIGHTS, TOKENIZER), "predictor")


def digest(file: PredictorFile) -> str:
    """SHA-256 of the predictor's content, the same for what was written and what is read."""
    return hashlib.sha256(_encoded(file)[FACTS]).hexdigest()


@functools.cache
def predictor_named(name: str) -> PredictorFile:
    """The predictor of `find_predictor`, read once in a process.

    Raises:
      InputError: as `find_predictor` and `read_predictor`.
    """
    return read_predictor(find_predictor(name))


def _read(path: Path) -> bytes:
    return read_file(path, f"a predictor folder holds {FACTS}, {WEIGHTS} and {TOKENIZER}")


def _encoded(file: PredictorFile) -> dict[str, bytes]:
    """The contents of the files; the facts hold digests of the others."""
    others = {WEIGHTS: bytes_of(file.weights, float16=file.float16), TOKENIZER: file.tokenizer.encode()}
    fields = {field.name: getattr(file, field.name) for field in dataclasses.fields(file)}
    del fields["weights"], fields["tokenizer"]
    confusion = file.confusion
    data = {
        "format_version": fields.pop("format_version"),
        **fields,
        "config": dataclasses.asdict(file.config),
        "buckets": dataclasses.asdict(file.buckets),
        "confusion": {
            "overall": confusion.overall.tolist(),
            "by_task": {task: counts.tolist() for task, counts in zip(file.tasks, confusion.by_task, strict=True)},
        },
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in others.items()},
    }
    return {FACTS: f"{json.dumps(data, indent=2, allow_nan=False)}\n".encode(), **others}


def _predictor(fields: Fields, weights: dict[str, np.ndarray], tokenizer: str) -> PredictorFile:
    tasks = fields.texts("tasks")
    buckets, confusion = fields.within("buckets"), fields.within("confusion")
    by_task = confusion.within("by_task")
    counts = [by_task.matrix(task) for task in tasks]
    size = len(buckets.integers("lower"))
    if any(each.shape != (size, size) for each in counts):
        raise InputError(f"{by_task.place}: must hold counts {[size, size]} of each task; {SAME_TRAINING}")
    try:
        described = Buckets(
            buckets.text("kind"),
            buckets.integers("lower"),
            buckets.integers("representative"),
            buckets.integers("upper"),
        )
    except InputError as error:
        raise InputError(f"{fields.place}: {error}; {SAME_TRAINING}") from error
    return PredictorFile(
        name=fields.text("name"),
        config=_config(fields.within("config")),
        buckets=described,
        tasks=tasks,
        hint=fields.text("hint"),
        max_tokens=fields.integer("max_tokens"),
        tail_tokens=fields.integer("tail_tokens"),
        majority=fields.integer("majority"),
        task_majority=fields.integers("task_majority"),
        confusion=Confusion(
            confusion.matrix("overall"), np.stack(counts) if counts else np.zeros((0, size, size), int)
        ),
        training=fields.within("training").data,
        weights=weights,
        tokenizer=tokenizer,
        features=fields.texts("features"),
        float16=fields.flag("float16"),
    )


def _config(fields: Fields) -> PredictorConfig:
    encoder = fields.within("encoder")
    names = [field.name for field in dataclasses.fields(DistilBertConfig)]
    try:
        return PredictorConfig(
            encoder=DistilBertConfig(**{name: encoder.integer(name) for name in names}),
            **{name: fields.integer(name) for name in ("buckets", "tasks", "features", "head_hidden")},
            pooling=cast(Pooling, fields.text("pooling")),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{fields.place}: {error}; {SAME_TRAINING}") from error
