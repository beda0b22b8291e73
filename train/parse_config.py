"""From what TOML holds to frozen dataclasses: unknown keys and wrong types are refused, ints pass for floats."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jaxroute.errors import InputError

Table = TypeVar("Table")

KINDS = {int: "a whole number", float: "a finite number", str: "a string", bool: "true or false"}


class Place:
    """Where a value comes from, for messages: the file, or `--set` for what was overridden."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._overridden: set[str] = set()

    def override(self, key: str) -> None:
        """From now on the key, and what is below it, is named after `--set`."""
        self._overridden.add(key)

    def of(self, key: str) -> str:
        """The source and the dotted key."""
        parts = key.split(".")
        prefixes = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return f"--set {key}" if prefixes & self._overridden else f"{self._file}: {key}"


def parse_table(kind: type[Table], raw: object, place: Place, key: str) -> Table:
    """A dataclass from a TOML table.

    Args:
      kind: the dataclass.
      raw: what TOML read.
      place: names what is wrong.
      key: dotted path of the table; "" is the top.

    Raises:
      InputError: an unknown key or a wrong type.
    """
    if not isinstance(raw, Mapping):
        raise InputError(f"{place.of(key)} is {raw!r}, must be a table")
    hints = get_type_hints(kind)
    if unknown := [name for name in raw if name not in hints]:
        raise InputError(f"{place.of(_join(key, unknown[0]))} is an unknown key; known: {', '.join(hints)}")
    return kind(**{name: _parse(hints[name], value, place, _join(key, name)) for name, value in raw.items()})


def _parse(hint: Any, value: object, place: Place, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return parse_table(hint, value, place, key)  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        return _parse_list(get_args(hint), value, place, key)
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{place.of(key)} is {value!r}; known: {', '.join(get_args(hint))}")
        return value
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise InputError(f"{place.of(key)} is {value!r}, must be {KINDS[hint]}")
    return value


def _parse_list(hints: tuple[Any, ...], value: object, place: Place, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise InputError(f"{place.of(key)} is {value!r}, must be a list")
    if types.EllipsisType in {type(hint) for hint in hints}:
        hints = (hints[0],) * len(value)
    elif len(value) != len(hints):
        raise InputError(f"{place.of(key)} is {value!r}, must be a list of {len(hints)}")
    items = enumerate(zip(hints, value, strict=True))
    return tuple(_parse(hint, item, place, _join(key, str(number))) for number, (hint, item) in items)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
