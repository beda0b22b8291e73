"""JSON files whose fields are asked for by type, with one line for whatever is not as it should be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from jaxroute.errors import InputError, first_line


@dataclasses.dataclass(frozen=True)
class Fields:
    """Fields of a JSON object; each method raises InputError where the field is missing or of another type.

    Attributes:
      data: the object.
      place: what errors call it.
      remedy: what errors end with.
    """

    data: Mapping[str, object]
    place: str
    remedy: str

    def within(self, name: str) -> Fields:
        """An object's own fields."""
        data = cast("dict[str, object]", self._typed(name, dict, "an object"))
        return Fields(data, f"{self.place}: {name}", self.remedy)

    def text(self, name: str) -> str:
        """A text."""
        return cast(str, self._typed(name, str, "a text"))

    def flag(self, name: str) -> bool:
        """True or false."""
        return cast(bool, self._typed(name, bool, "true or false"))

    def integer(self, name: str) -> int:
        """A whole number."""
        return cast(int, self._typed(name, int, "a whole number"))

    def number(self, name: str) -> float:
        """A number."""
        return self._float(self._typed(name, (int, float), "a number"), name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        return cast("tuple[str, ...]", self._each(name, str, "texts"))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        return cast("tuple[int, ...]", self._each(name, int, "whole numbers"))

    def matrix(self, name: str) -> np.ndarray:
        """[rows, columns] int64, a list of lists of whole numbers, all of one length."""
        rows = self._each(name, list, "lists of whole numbers")
        numbers = cast("tuple[list[object], ...]", rows)
        if len({len(row) for row in numbers}) != 1 or not all(is_typed(each, int) for row in numbers for each in row):
            raise InputError(f"{self.place}: {name} must be lists of whole numbers of one length; {self.remedy}")
        try:
            return np.asarray(rows, np.int64)
        except OverflowError:
            raise InputError(f"{self.place}: {name} holds a number that is too large; {self.remedy}") from None

    def float32(self, name: str) -> np.ndarray:
        """A list of numbers; too large ones are infinite."""
        values = [self._float(value, name) for value in self._each(name, (int, float), "numbers")]
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float64).astype(np.float32)

    def _float(self, value: object, name: str) -> float:
        try:
            return float(cast(float, value))
        except OverflowError:
            raise InputError(f"{self.place}: {name} holds a number that is too large; {self.remedy}") from None

    def _each(self, name: str, kind: type | tuple[type, ...], what: str) -> tuple[object, ...]:
        values = cast("list[object]", self._typed(name, list, f"a list of {what}"))
        if not all(is_typed(value, kind) for value in values):
            raise InputError(f"{self.place}: {name} must be a list of {what}; {self.remedy}")
        return tuple(values)

    def _typed(self, name: str, kind: type | tuple[type, ...], what: str) -> object:
        if name not in self.data:
            raise InputError(f"{self.place}: lacks {name}; {self.remedy}")
        if not is_typed(self.data[name], kind):
            raise InputError(f"{self.place}: {name} must be {what}; {self.remedy}")
        return self.data[name]


def is_typed(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether it is of that type; Python takes true for a number, JSON does not."""
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def parse_object(content: bytes, path: Path, remedy: str) -> dict[str, object]:
    """The object that a JSON file holds.

    Raises:
      InputError: no JSON, or no object.
    """
    try:
        data = json.loads(content)
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({first_line(error)}); {remedy}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold an object; {remedy}")
    return data
