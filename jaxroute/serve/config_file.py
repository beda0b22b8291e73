"""A configuration file: YAML whose keys are the fields of `ServeConfig`."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxroute.errors import InputError, first_line
from jaxroute.serve.config import BackendConfig, ServeConfig


def read_config(path: Path | None, **flags: Any) -> ServeConfig:
    """The configuration of a file, or of flags alone; a flag that is not None stands for what the file says.

    Raises:
      InputError: names file and key, and the remedy.
    """
    data = {} if path is None else _mapping(path)
    place = "" if path is None else f"{path}: "
    given = {name: value for name, value in flags.items() if value is not None}
    values = {name: value for name, value in data.items() if name not in given}
    try:
        return typing.cast(ServeConfig, _build(ServeConfig, values, place, "", given))
    except InputError as error:
        # What the dataclasses refuse has no place in it.
        raise InputError(str(error) if str(error).startswith(place) else f"{place}{error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        what = getattr(error, "problem", None) or first_line(error)
        raise InputError(f"{path}: {line}is no YAML ({what}); mend it there") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold keys such as `backends:`; see the README")
    return data


def _build(cls: type, data: Mapping[Any, Any], place: str, above: str, given: Mapping[str, Any] | None = None) -> Any:
    """An object of a dataclass, whose fields that are dataclasses are built likewise.

    Args:
      cls: the dataclass.
      data: values by field as YAML has them.
      place: what errors begin with.
      above: keys above, with a dot behind each.
      given: values that need no conversion.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := [key for key in data if key not in known]:
        raise InputError(f"{place}{above}{unknown[0]}: no such key; there are {', '.join(known)}")
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        inside = f"{above}{key}"
        default = defaults[key]
        if key == "backends":
            values[key] = _backends(value, place, inside)
        elif dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise InputError(f"{place}{inside}: must hold keys of its own, such as {_first_field(default)}")
            # What the file does not say of a listener stays as it is by default.
            kept = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
            kept = {name: each for name, each in kept.items() if name not in value}
            values[key] = _build(type(default), value, place, f"{inside}.", kept)
        else:
            values[key] = _typed(value, hints[key], f"{place}{inside}")
    values.update(given or {})
    missing = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        if cls is ServeConfig:
            values["backends"] = ()
        else:
            raise InputError(f"{place}{above}{missing[0]}: is missing; add it")
    return cls(**values)


def _backends(value: object, place: str, inside: str) -> tuple[BackendConfig, ...]:
    if not isinstance(value, list):
        raise InputError(f"{place}{inside}: must be a list of addresses, or of objects with url, name and so on")
    backends = []
    for number, each in enumerate(value):
        here = f"{inside}[{number}]"
        if isinstance(each, str):
            each = {"url": each}
        if not isinstance(each, dict):
            raise InputError(f"{place}{here}: must be an address, or an object with url, name and so on")
        backends.append(_build(BackendConfig, each, place, f"{here}."))
    return tuple(backends)


def _typed(value: object, hint: Any, key: str) -> Any:
    """A YAML value as the field's type."""
    kinds = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    if value is None and type(None) in kinds:
        return None
    kind = next(iter(kinds - {type(None)}))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {str: "a text", Path: "a text", int: "a whole number", float: "a number", bool: "true or false"}
        raise InputError(f"{key}: is {value!r}, must be {words[kind]}")
    return value


def _first_field(section: object) -> str:
    return dataclasses.fields(section)[0].name  # type: ignore[arg-type]
