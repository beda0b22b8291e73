"""Prompts as the network takes them, and batches of like length.

The training has no test rows: `Rows` is made of rows of the splits `train` and `val` and of no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxroute.errors import InputError
from jaxroute.predictor.buckets import PAPER_FIRST, PAPER_RATIO, Buckets
from jaxroute.predictor.prompts import PromptTable
from jaxroute.predictor.tokenizer import Encoded, PromptTokenizer, pad
from jaxroute.train.predictor.config import BucketsConfig, RowsConfig

WIDTH_STEP = 16
"""Batches are padded to a multiple of it, so that few programs are compiled."""

BATCHES_SORTED = 40
"""Batches whose rows are sorted by length together."""


class Batch(NamedTuple):
    """R rows; leaves on the host.

    Attributes:
      tokens: [R, L] int32.
      mask: [R, L] bool.
      features: [R, F] float32.
      bucket, task: [R] int32, true ones.
      row: [R] int64, which of the rows.
      hinted: [R] bool, whether the hint is in it.
    """

    tokens: np.ndarray
    mask: np.ndarray
    features: np.ndarray
    bucket: np.ndarray
    task: np.ndarray
    row: np.ndarray
    hinted: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """N rows in tokens.

    Attributes:
      table: the rows.
      plain, hinted: N encoded prompts, without and with the hint.
      bucket, task: [N] int32.
      padding: id that fills up a batch.
      longest: most tokens of an encoded prompt.
    """

    table: PromptTable
    plain: Sequence[Encoded]
    hinted: Sequence[Encoded]
    bucket: np.ndarray
    task: np.ndarray
    padding: int
    longest: int

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, row: np.ndarray, hinted: np.ndarray, *, size: int) -> Batch:
        """Those rows ([R'] numbers), each with the hint or not ([R'] bool); the last is repeated up to `size`."""
        row = np.concatenate([row, np.repeat(row[-1:], size - len(row))])
        hinted = np.concatenate([hinted, np.repeat(hinted[-1:], size - len(hinted))])
        encoded = [(self.hinted if hint else self.plain)[number] for number, hint in zip(row, hinted, strict=True)]
        length = max(len(each.tokens) for each in encoded)
        width = min(self.longest, -(-length // WIDTH_STEP) * WIDTH_STEP)
        tokens, mask, features = pad(encoded, self.padding, length=width)
        return Batch(tokens, mask, features, self.bucket[row], self.task[row], row, hinted)

    def epoch(self, size: int, hint_share: float, seed: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The batches of one pass, as row numbers [size] and whether each has the hint; a function of the seed.

        Rows are shuffled, sorted by length among `BATCHES_SORTED` batches, and the batches shuffled. What is left over
        sits out this pass.
        """
        rng = np.random.default_rng(seed)
        hinted = rng.random(len(self)) < hint_share
        lengths = self.lengths(hinted) + rng.random(len(self)) * WIDTH_STEP / 2
        order = rng.permutation(len(self))
        batches = []
        for start in range(0, len(order), size * BATCHES_SORTED):
            part = order[start : start + size * BATCHES_SORTED]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches += [part[first : first + size] for first in range(0, len(part) - size + 1, size)]
        return [(batches[number], hinted[batches[number]]) for number in rng.permutation(len(batches))]

    def in_order(self, size: int, *, hinted: bool) -> Iterator[tuple[np.ndarray, Batch]]:
        """All rows by length: the numbers [R'] of those that count in a batch, and the batch of `size` rows."""
        hints = np.full(len(self), hinted)
        order = np.argsort(self.lengths(hints), kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.batch(rows, hints[rows], size=size)

    def lengths(self, hinted: np.ndarray) -> np.ndarray:
        """[N] tokens of each row, with the hint where `hinted` [N] says so."""
        plain = np.asarray([len(each.tokens) for each in self.plain])
        return np.where(hinted, np.asarray([len(each.tokens) for each in self.hinted]), plain)


def chosen(table: PromptTable, config: RowsConfig, split: str) -> PromptTable:
    """The rows of a split that the configuration allows.

    Raises:
      InputError: there are none.
    """
    rows = table.where(split=split, task=config.tasks or None, exclude_source=config.exclude_sources)
    if not len(rows):
        raise InputError(
            f"prompts: no row of the split {split} is left by rows.tasks = {list(config.tasks)} and "
            f"rows.exclude_sources = {list(config.exclude_sources)}; give other files or other rows"
        )
    return rows


def fitted_buckets(config: BucketsConfig, train: PromptTable) -> Buckets:
    """Buckets of training rows."""
    lengths, most = train.output_tokens, config.most or None
    match config.kind:
        case "quantile":
            return Buckets.quantile(lengths, config.count, most=most)
        case "equal":
            return Buckets.equal_width(lengths, config.width, most=most)
        case "geometric":
            return Buckets.geometric(lengths, config.count, most=most)
        case "paper":
            return Buckets.geometric(lengths, config.count, first=PAPER_FIRST, ratio=PAPER_RATIO, most=most)


def encoded_rows(
    table: PromptTable, tokenizer: PromptTokenizer, buckets: Buckets, tasks: Sequence[str], *, hint: str
) -> Rows:
    """Rows in tokens.

    Args:
      table: rows of the splits train or val.
      tokenizer: of the network.
      buckets: what is predicted.
      tasks: K names.
      hint: see `FitConfig`; what is never used is not encoded.
    """
    if "test" in table.split:
        raise ValueError("test rows have no place in a training")
    plain = None if hint == "always" else tokenizer.encode_all(table.prompt, [None] * len(table))
    hinted = None if hint == "never" else tokenizer.encode_all(table.prompt, table.task.tolist())
    number = {task: index for index, task in enumerate(tasks)}
    return Rows(
        table=table,
        plain=plain or hinted or [],
        hinted=hinted or plain or [],
        bucket=buckets.bucket_of(table.output_tokens).astype(np.int32),
        task=np.asarray([number.get(task, 0) for task in table.task.tolist()], np.int32),
        padding=tokenizer.padding,
        longest=tokenizer.max_tokens,
    )
