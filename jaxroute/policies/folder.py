"""A policy folder on disk: `policy.json`, the facts, and `policy.safetensors`, the weights; read without jax."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxroute.errors import InputError
from jaxroute.observation import Encoding
from jaxroute.policies.policy_file import FORMAT_VERSION, RETRAIN, NetworkShape, PolicyFile, Scales, check_policy

FACTS, WEIGHTS = "policy.json", "policy.safetensors"

RUN_POLICY = "policy"
"""Folder of a training run that holds its current policy."""

SAME_EXPORT = "take both files of a policy from one export"


def find_policy(path: str | Path) -> Path:
    """The policy folder that a path stands for: itself, or the current one of a training run.

    Raises:
      InputError: neither.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"policy {path}: no such folder; give a policy folder or a training run")
    for folder in (path, path / RUN_POLICY):
        if (folder / FACTS).exists() or (folder / WEIGHTS).exists():
            return folder
    raise InputError(
        f"policy {path}: holds neither {FACTS} nor a folder {RUN_POLICY}; give a policy folder, or a training run that "
        "has come to its first policy"
    )


def read_policy(path: str | Path) -> PolicyFile:
    """Reads a policy folder and checks all of it.

    Raises:
      InputError: names the file and the remedy: missing, damaged, of another version, or one that cannot be run.
    """
    facts, weights = Path(path) / FACTS, Path(path) / WEIGHTS
    data = _json(facts)
    content = _bytes(weights)
    if hashlib.sha256(content).hexdigest() != data.get("weights_sha256"):
        raise InputError(f"{weights}: is not the file that {FACTS} was written with; {SAME_EXPORT}")
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{weights}: is no safetensors file that NumPy reads ({_line(error)}); {RETRAIN}") from error
    policy = _policy(_Fields(data, str(facts)), arrays)
    check_policy(policy, str(facts), str(weights))
    return policy


def write_policy(policy: PolicyFile, path: str | Path) -> None:
    """Writes a policy folder, in place of the policy that may be there; it is there whole or not at all.

    Raises:
      InputError: something else is in the way, or the policy is one that `read_policy` would refuse.
      OSError: the folder above cannot be made or written.
    """
    target = Path(path).resolve()
    check_policy(policy, f"policy {policy.name}", f"policy {policy.name}")
    text, content = _encoded(policy)
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    new, old = target.with_name(f".{unique}.tmp"), target.with_name(f".{unique}.old")
    try:
        new.mkdir()
        (new / WEIGHTS).write_bytes(content)
        (new / FACTS).write_text(text, encoding="utf-8")
        _swap(new, target, old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Raises InputError where something other than a policy folder would be lost by writing one to `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give a folder")
    if others := sorted({entry.name for entry in path.iterdir()} - {FACTS, WEIGHTS}):
        raise InputError(f"{path}: is no policy folder, it holds {others[0]}; give a new folder")


def digest(policy: PolicyFile) -> str:
    """SHA-256 of the policy's content, the same for what `write_policy` wrote and `read_policy` read."""
    return hashlib.sha256(_encoded(policy)[0].encode()).hexdigest()


def _swap(new: Path, target: Path, old: Path) -> None:
    """Puts `new` in the place of `target`, which moves to `old`; after an error, `target` is as it was."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise


def _encoded(policy: PolicyFile) -> tuple[str, bytes]:
    """The contents of the two files; the facts hold a digest of the weights."""
    content = save({name: np.ascontiguousarray(array) for name, array in policy.weights.items()})
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    del fields["weights"]
    data = {
        "format_version": fields.pop("format_version"),
        **fields,
        "scales": {name: values.tolist() for name, values in vars(policy.scales).items()},
        "network": vars(policy.network),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n", content


def _policy(fields: _Fields, weights: dict[str, np.ndarray]) -> PolicyFile:
    scales, network = fields.within("scales"), fields.within("network")
    return PolicyFile(
        name=fields.text("name"),
        observation=cast(Encoding, fields.text("observation")),
        bucket_edges=fields.integers("bucket_edges"),
        router_features=fields.texts("router_features"),
        instance_features=fields.texts("instance_features"),
        scales=Scales(**{field.name: scales.float32(field.name) for field in dataclasses.fields(Scales)}),
        network=NetworkShape(network.integers("hidden"), network.flag("holds"), network.text("activation")),
        router_order=fields.text("router_order"),
        ageing=fields.number("ageing"),
        dt=fields.number("dt"),
        profiles=fields.texts("profiles"),
        training=fields.within("training").data,
        weights=weights,
        # Older files have none.
        spf_edges=fields.integers("spf_edges") if "spf_edges" in fields.data else (),
        actions=fields.text("actions"),
    )


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Fields of a JSON object, each asked for by its type; `place` is what errors call the object."""

    data: Mapping[str, object]
    place: str

    def within(self, name: str) -> _Fields:
        return _Fields(cast("dict[str, object]", self._typed(name, dict, "an object")), f"{self.place}: {name}")

    def text(self, name: str) -> str:
        return cast(str, self._typed(name, str, "a text"))

    def flag(self, name: str) -> bool:
        return cast(bool, self._typed(name, bool, "true or false"))

    def number(self, name: str) -> float:
        return self._float(self._typed(name, (int, float), "a number"), name)

    def texts(self, name: str) -> tuple[str, ...]:
        return cast("tuple[str, ...]", self._each(name, str, "texts"))

    def integers(self, name: str) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self._each(name, int, "whole numbers"))

    def float32(self, name: str) -> np.ndarray:
        values = [self._float(value, name) for value in self._each(name, (int, float), "numbers")]
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float64).astype(np.float32)

    def _float(self, value: object, name: str) -> float:
        try:
            return float(cast(float, value))
        except OverflowError:
            raise InputError(f"{self.place}: {name} holds a number that is too large; {RETRAIN}") from None

    def _each(self, name: str, kind: type | tuple[type, ...], what: str) -> tuple[object, ...]:
        values = cast("list[object]", self._typed(name, list, f"a list of {what}"))
        if not all(_is(value, kind) for value in values):
            raise InputError(f"{self.place}: {name} must be a list of {what}; {SAME_EXPORT}")
        return tuple(values)

    def _typed(self, name: str, kind: type | tuple[type, ...], what: str) -> object:
        if name not in self.data:
            raise InputError(f"{self.place}: lacks {name}; {SAME_EXPORT}")
        if not _is(self.data[name], kind):
            raise InputError(f"{self.place}: {name} must be {what}; {SAME_EXPORT}")
        return self.data[name]


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether it is of that type; Python takes true for a number, JSON does not."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _json(path: Path) -> dict[str, object]:
    content = _bytes(path)
    try:
        data = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({_line(error)}); {SAME_EXPORT}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold an object; {SAME_EXPORT}")
    # Before anything else is asked of it: another version may have other fields.
    if (version := data.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{path}: format_version is {version!r}, but this version reads {FORMAT_VERSION}; {RETRAIN}")
    return data


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a policy folder holds {FACTS} and {WEIGHTS}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({_line(error)}); check the path and its permissions") from error


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
