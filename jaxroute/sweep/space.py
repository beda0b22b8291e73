"""What a sweep goes over: keys of a training configuration and their values."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxroute.errors import InputError
from jaxroute.train.load_config import load_config

Kind = Literal["uniform", "log", "int"]

RANGE = re.compile(r"(uniform|log|int)\(([^,()]+),([^,()]+)\)")


@dataclasses.dataclass(frozen=True)
class Choices:
    """Some values.

    Attributes:
      key: of the configuration, as for `--set`.
      values: as TOML, or plain strings.
    """

    key: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Range:
    """All values from `low` to `high`: drawn evenly, evenly in their logarithm, or whole ones, both ends included.

    Attributes:
      key: of the configuration, as for `--set`.
      kind: how they are drawn.
      low, high: the ends.
    """

    key: str
    kind: Kind
    low: float
    high: float

    @property
    def values(self) -> tuple[str, ...]:
        """The ends, as TOML."""
        return tuple(as_toml(int(end) if self.kind == "int" else end) for end in (self.low, self.high))


Axis = Choices | Range


def parse_over(text: str) -> Axis:
    """An axis from `KEY=A,B,...`, `KEY=uniform(A,B)`, `KEY=log(A,B)` or `KEY=int(A,B)`.

    Raises:
      InputError: it is none of these.
    """
    key, separator, given = (part.strip() for part in text.partition("="))
    if not separator or not key or not given:
        raise InputError(f"--over {text!r}: must be KEY=VALUE,VALUE,... such as seed=0,1,2 or KEY=log(LOW,HIGH)")
    if match := RANGE.fullmatch(given):
        return _range(key, match[1], match.groups()[1:], f"--over {text}")
    values = tuple(value.strip() for value in _split(given))
    if not all(values):
        raise InputError(f"--over {text}: has an empty value; separate values by single commas")
    return Choices(key, values)


def read_space(path: Path) -> list[Axis]:
    """The axes of a TOML file: `[over]`, with a list of values or `{log = [LOW, HIGH]}` (uniform, int) for each key.

    Raises:
      InputError: it cannot be read, or holds something else.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--space {path}: cannot be read ({error}); give a TOML file") from error
    if set(data) != {"over"} or not isinstance(data["over"], dict):
        raise InputError(f"--space {path}: must hold one table, [over], with the keys to go over")
    return list(_axes(data["over"], "", f"--space {path}"))


def check_axes(axes: Sequence[Axis], config: str, overrides: Sequence[str]) -> None:
    """Raises InputError where there is no axis, a key twice, or a value that the configuration cannot take."""
    if not axes:
        raise InputError("nothing to go over: give --over KEY=VALUE,VALUE,... or --space FILE")
    keys = [axis.key for axis in axes]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InputError(f"--over {twice[0]}: is given twice; give all of its values at once")
    for axis in axes:
        for value in axis.values:
            load_config(config, [*overrides, f"{axis.key}={value}"])


def as_toml(value: object) -> str:
    """A value of a TOML or JSON file as TOML in one line."""
    return json.dumps(value)


def _axes(table: Mapping[str, Any], prefix: str, place: str) -> Iterator[Axis]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, list) and value:
            yield Choices(key, tuple(as_toml(each) for each in value))
        elif isinstance(value, dict) and len(value) == 1 and (kind := next(iter(value))) in ("uniform", "log", "int"):
            ends = value[kind]
            if not isinstance(ends, list) or len(ends) != 2:
                raise InputError(f"{place}: {key} must have two ends, such as {{{kind} = [1, 10]}}")
            yield _range(key, kind, ends, f"{place}: {key}")
        elif isinstance(value, dict) and value:
            # A dotted key without quotes.
            yield from _axes(value, f"{key}.", place)
        else:
            raise InputError(f"{place}: {key} must be a list of values, or a range such as {{log = [1e-4, 1e-2]}}")


def _range(key: str, kind: str, ends: Sequence[object], place: str) -> Range:
    try:
        low, high = (float(str(end)) for end in ends)
    except ValueError:
        raise InputError(f"{place}: the ends of a range must be numbers") from None
    if not low < high:
        raise InputError(f"{place}: the low end must be below the high one")
    if kind == "log" and low <= 0:
        raise InputError(f"{place}: the ends of a log range must be above 0")
    if kind == "int" and not (low.is_integer() and high.is_integer()):
        raise InputError(f"{place}: the ends of an int range must be whole numbers")
    kinds: dict[str, Kind] = {"uniform": "uniform", "log": "log", "int": "int"}
    return Range(key, kinds[kind], low, high)


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that are in no brackets or quotes."""
    depth, quote, start = 0, "", 0
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]
