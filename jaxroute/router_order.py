"""The orders of the router queue: their names, and what the shortest-predicted one sorts by; NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxroute.length_edges import rounded_down

DEFAULT_AGEING = 5.0
"""Predicted tokens that a second of waiting is worth in the shortest-predicted order of the router queue."""

SHORTEST_FIRST = "+spf"
"""Suffix of a policy whose router queue is in shortest-predicted order."""


def split_order(name: str) -> tuple[str, str]:
    """A policy's name without its suffix, and the order of the router queue that it asks for."""
    if name.endswith(SHORTEST_FIRST):
        return name.removesuffix(SHORTEST_FIRST), "shortest-predicted"
    return name, "fcfs"


def shortness(
    arrival_s: np.ndarray, predicted_tokens: np.ndarray, *, ageing: float, edges: Sequence[int] = ()
) -> np.ndarray:
    """[N] float64, by which the shortest-predicted order sorts, the least first; of equals the one that came first.

    Predicted tokens less `ageing` times the time waited, but all wait equally fast, so that it never changes.

    Args:
      arrival_s: [N] float64.
      predicted_tokens: [N] integers.
      ageing: predicted tokens that a second of waiting is worth.
      edges: to which predicted tokens are rounded down, ascending; without any they count as they are.
    """
    ranked = rounded_down(predicted_tokens, edges) if edges else predicted_tokens
    return np.asarray(ranked + ageing * arrival_s)
