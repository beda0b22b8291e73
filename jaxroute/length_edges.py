"""Length buckets by their lower edges, in output tokens; NumPy only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

MOST_TOKENS = 2**31
"""Beyond what a request can have; edges are below it."""


def are_edges(edges: Sequence[int]) -> bool:
    """Whether they are numbers of tokens above 0 that ascend; none at all are."""
    return all(earlier < later for earlier, later in itertools.pairwise((0, *edges, MOST_TOKENS)))


def bucket_of(output_tokens: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """[N] int64, bucket of each output length."""
    return np.searchsorted(np.asarray(edges), output_tokens, side="right") - 1


def rounded_down(tokens: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    """[N] int64, each number of tokens as the nearest edge below it or at it; 0 below the first edge."""
    return np.asarray((0, *edges))[np.searchsorted(np.asarray(edges), tokens, side="right")]
