"""Buckets of output lengths: what the predictor tells apart, and what each stands for; NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxroute.errors import InputError
from jaxroute.length_edges import are_edges, bucket_of

PAPER_FIRST, PAPER_RATIO = 250, 4.0
"""The paper's unequal buckets: 0-250, 250-1000, 1000-4000, ... output tokens (its section 6)."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """B buckets of output lengths, the last one open.

    Fit them on the lengths of training rows and no others.

    Attributes:
      kind: how they were made, such as `quantile-5`.
      lower: least output tokens of each; the first is 1.
      representative: output tokens that stand for each, the mean of its training rows (its middle if it has none).
      upper: most output tokens of each, the last one's the longest that it is to stand for.
    """

    kind: str
    lower: tuple[int, ...]
    representative: tuple[int, ...]
    upper: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises InputError where they are no buckets."""
        size = len(self.lower)
        if not size or len(self.representative) != size or len(self.upper) != size:
            raise InputError(f"buckets {self.kind}: lower, representative and upper must be of one length above 0")
        if self.lower[0] != 1 or not are_edges(self.lower):
            raise InputError(f"buckets {self.kind}: lower is {list(self.lower)}, must ascend from 1")
        if self.upper[:-1] != tuple(edge - 1 for edge in self.lower[1:]):
            raise InputError(
                f"buckets {self.kind}: upper is {list(self.upper)}, must end before the next bucket begins"
            )
        for lower, value, upper in zip(self.lower, self.representative, self.upper, strict=True):
            if not lower <= value <= upper:
                raise InputError(f"buckets {self.kind}: {value} is to stand for {lower} to {upper} output tokens")

    def __len__(self) -> int:
        return len(self.lower)

    def bucket_of(self, output_tokens: np.ndarray) -> np.ndarray:
        """[N] int64 in 0..B-1, bucket of each output length [N]; the first one's where there is no output."""
        return np.maximum(bucket_of(np.asarray(output_tokens), self.lower), 0)

    def names(self) -> tuple[str, ...]:
        """What each is called in tables, such as `1-31`; the last one `512+`."""
        pairs = zip(self.lower[:-1], self.upper[:-1], strict=True)
        return (*(f"{lower}-{upper}" for lower, upper in pairs), f"{self.lower[-1]}+")

    @classmethod
    def from_edges(cls, kind: str, lower: Sequence[int], lengths: np.ndarray, *, most: int | None = None) -> Buckets:
        """Buckets with given lower edges.

        Args:
          kind: what to call them.
          lower: least output tokens of each, ascending from 1.
          lengths: [N] output tokens of training rows, which say what each bucket stands for.
          most: longest output that a server gives (its `max_tokens`); longer ones count as this one. By default the
            longest of `lengths`.

        Raises:
          InputError: no lengths, or edges that are none.
        """
        edges = tuple(int(edge) for edge in lower)
        lengths = _checked(lengths, most)
        longest = max(int(lengths.max()) if most is None else most, edges[-1])
        upper = (*(edge - 1 for edge in edges[1:]), longest)
        members = [lengths[(lengths >= low) & (lengths <= high)] for low, high in zip(edges, upper, strict=True)]
        representative = [
            round(float(rows.mean())) if len(rows) else (low + high) // 2
            for rows, low, high in zip(members, edges, upper, strict=True)
        ]
        return cls(kind, edges, tuple(representative), upper)

    @classmethod
    def equal_width(cls, lengths: np.ndarray, width: int = 512, *, most: int | None = None) -> Buckets:
        """As wide as each other: below `width` output tokens, below twice as many, ... up to the longest training row.

        The paper's are 250 (its text) and 512 (its slides). Arguments as in `from_edges`.
        """
        if width < 2:
            raise InputError(f"buckets of equal width: width is {width}, must be at least 2 tokens")
        longest = int(_checked(lengths, most).max())
        return cls.from_edges(f"equal-{width}", (1, *range(width, longest + 1, width)), lengths, most=most)

    @classmethod
    def quantile(cls, lengths: np.ndarray, buckets: int, *, most: int | None = None) -> Buckets:
        """As frequent as each other in training rows; fewer than asked for where too many rows are of one length.

        Arguments as in `from_edges`.
        """
        _check_count("quantile", buckets)
        ordered = np.sort(_checked(lengths, most))
        edges = []
        for share in np.arange(1, buckets) / buckets:
            # The rows of one length stay together, on the side where the share is missed by less.
            value = int(ordered[min(int(share * len(ordered)), len(ordered) - 1)])
            below = [np.searchsorted(ordered, edge) / len(ordered) for edge in (value, value + 1)]
            edges.append(value if share - below[0] <= below[1] - share else value + 1)
        # None with no row on one of its sides.
        kept = sorted({1, *(edge for edge in edges if ordered[0] < edge <= ordered[-1])})
        return cls.from_edges(f"quantile-{buckets}", kept, lengths, most=most)

    @classmethod
    def geometric(
        cls,
        lengths: np.ndarray,
        buckets: int,
        *,
        first: int | None = None,
        ratio: float | None = None,
        most: int | None = None,
    ) -> Buckets:
        """Each wider than the last by one factor; fewer than asked for where they end beyond the longest training row.

        The paper's are `first=PAPER_FIRST, ratio=PAPER_RATIO`. Other arguments as in `from_edges`.

        Args:
          lengths: [N] output tokens of training rows.
          buckets: B.
          first: second bucket's lower edge; by default where a B-th of the rows is below.
          ratio: between the lower edges after it; by default such that a B-th of the rows is in the last bucket.
          most: longest output that a server gives.
        """
        _check_count("geometric", buckets)
        ordered = np.sort(_checked(lengths, most))
        if first is None:
            first = max(2, int(ordered[len(ordered) // buckets]))
        if ratio is None:
            last = max(first + 1, int(ordered[len(ordered) - 1 - len(ordered) // buckets]))
            ratio = (last / first) ** (1 / max(1, buckets - 2))
        if first < 2 or not ratio > 1:
            raise InputError(f"geometric buckets: first is {first}, ratio {ratio}; must be at least 2 and above 1")
        edges = {1, *(round(first * ratio**power) for power in range(buckets - 1))}
        kept = sorted(edge for edge in edges if edge <= max(1, int(ordered[-1])))
        return cls.from_edges(f"geometric-{buckets}", kept, lengths, most=most)


def _checked(lengths: np.ndarray, most: int | None) -> np.ndarray:
    """The lengths, none above `most`."""
    lengths = np.asarray(lengths)
    if not lengths.size or lengths.min() < 1:
        raise InputError("buckets: fit them on at least one output length, all of at least 1 token")
    if most is not None and most < 1:
        raise InputError(f"buckets: most is {most}, must be at least 1 token")
    return lengths if most is None else np.minimum(lengths, most)


def _check_count(kind: str, buckets: int) -> None:
    if buckets < 2:
        raise InputError(f"{kind} buckets: {buckets} asked for, must be at least 2")
