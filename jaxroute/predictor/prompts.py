"""Prompts with the lengths of their answers, from JSON lines into one table; NumPy, no jax.

One row a line: `prompt`, `output_tokens`, `task`, `split` (train, val or test); and, where they are known, `group`
(rows of one group are in one split), `source`, `license`, `length_kind` and `id`. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.text_file import read_lines

SPLITS = ("train", "val", "test")

LLM = "llm"
"""`length_kind` of rows that a real LLM answered; a row without a kind counts as one."""

MOST_TOKENS = 2**31 - 1

_TEXTS = {"task": None, "split": None, "group": "", "source": "", "license": "", "length_kind": LLM}
"""Fields that hold text, and what stands in for those that a row may lack."""


@dataclasses.dataclass(frozen=True, eq=False)
class PromptTable:
    """N prompts; all fields are [N].

    Attributes:
      prompt: the texts.
      output_tokens: int64, length of the answer.
      task: names of tasks.
      split: each of `SPLITS`, as the file has it.
      group: rows of one group are in one split; where a file has none, each row is a group of its own.
      source: where a row is from; may be empty.
      license: of the row, where the file says it; may be empty.
      length_kind: how the length came about: `llm` for the answer of a real LLM.
    """

    prompt: tuple[str, ...] = dataclasses.field(repr=False)
    output_tokens: np.ndarray
    task: np.ndarray
    split: np.ndarray
    group: np.ndarray
    source: np.ndarray
    license: np.ndarray
    length_kind: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def is_llm(self) -> np.ndarray:
        """[N] bool, whether a real LLM gave the answer."""
        return np.asarray(self.length_kind == LLM)

    def tasks(self) -> tuple[str, ...]:
        """The tasks that there are, sorted."""
        return tuple(str(task) for task in np.unique(self.task))

    def rows(self, which: np.ndarray) -> PromptTable:
        """Those rows, by a [N] mask or by numbers."""
        numbers = np.flatnonzero(which) if which.dtype == bool else which
        arrays = {name: getattr(self, name)[numbers] for name in _ARRAYS}
        return PromptTable(prompt=tuple(self.prompt[number] for number in numbers), **arrays)

    def where(
        self,
        *,
        split: str | None = None,
        group: str | None = None,
        task: Collection[str] | None = None,
        length_kind: str | None = None,
        source: Collection[str] | None = None,
        exclude_source: Collection[str] = (),
        license: Collection[str] | None = None,
    ) -> PromptTable:
        """The rows that meet all conditions that are given.

        Args:
          split: one of `SPLITS`.
          group: of the rows.
          task: any of these.
          length_kind: such as `llm`.
          source: any of these.
          exclude_source: none of these.
          license: any of these.
        """
        keep = np.ones(len(self), bool)
        for name, wanted in (("split", split), ("group", group), ("length_kind", length_kind)):
            if wanted is not None:
                keep &= getattr(self, name) == wanted
        for name, any_of in (("task", task), ("source", source), ("license", license)):
            if any_of is not None:
                keep &= np.isin(getattr(self, name), sorted(any_of))
        return self.rows(keep & ~np.isin(self.source, sorted(exclude_source)))


def joined(one: PromptTable, other: PromptTable) -> PromptTable:
    """The rows of both."""
    arrays = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in _ARRAYS}
    return PromptTable(prompt=one.prompt + other.prompt, **arrays)


_ARRAYS = tuple(field.name for field in dataclasses.fields(PromptTable) if field.name != "prompt")


def read_prompts(paths: Sequence[str | Path]) -> PromptTable:
    """Reads files of JSON lines, gzip or not, one behind the other.

    Raises:
      InputError: a file that cannot be read or has no rows, a row that is damaged, or a group in two splits; names
        file, row and remedy.
    """
    if not paths:
        raise InputError("prompts: no file given; give one of JSON lines (.jsonl or .jsonl.gz)")
    rows: list[Mapping[str, Any]] = []
    splits: dict[str, str] = {}
    for path in map(Path, paths):
        before = len(rows)
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                row = _row(line, f"{path}: row {number}")
                _check_group(row, splits, f"{path}: row {number}")
                rows.append(row)
        if len(rows) == before:
            raise InputError(f"{path}: holds no rows; give a file with one JSON object a line")
    texts = {name: np.asarray([row[name] for row in rows], str) for name in _TEXTS}
    texts["group"] = np.asarray([row["group"] or f"row {number}" for number, row in enumerate(rows)])
    return PromptTable(
        prompt=tuple(row["prompt"] for row in rows),
        output_tokens=np.asarray([row["output_tokens"] for row in rows], np.int64),
        **texts,
    )


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: is no JSON ({error}); write one object a line") from error
    if not isinstance(data, dict):
        raise InputError(f"{place}: is no JSON object; write one with prompt, output_tokens, task and split")
    for name in ("prompt", *_TEXTS):
        value = data.get(name, _TEXTS.get(name))
        if not isinstance(value, str):
            what = "is missing" if name not in data else f"is {str(value)[:40]!r}"
            raise InputError(f"{place}: {name} {what}, must be a text")
        data[name] = value
    if not data["task"].strip():
        raise InputError(f"{place}: task is empty; name what kind of request it is")
    if data["split"] not in SPLITS:
        raise InputError(f"{place}: split is {data['split']!r}; must be one of {', '.join(SPLITS)}")
    tokens = data.get("output_tokens")
    if type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS:
        raise InputError(f"{place}: output_tokens is {tokens!r}, must be a whole number of at least 1")
    return data


def _check_group(row: Mapping[str, Any], splits: dict[str, str], place: str) -> None:
    """A group in two splits would have the test rows known to the training."""
    if (group := row["group"]) and splits.setdefault(group, row["split"]) != row["split"]:
        raise InputError(
            f"{place}: group {group!r} is in the splits {splits[group]} and {row['split']}; put all rows of a group "
            "into one split"
        )
