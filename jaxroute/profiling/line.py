"""A line through the ends of steps that take the same time."""

from __future__ import annotations

import itertools

import numpy as np

FEWEST_ENDS = 4
"""Ends of steps through which a line is put."""


def line_through(number: np.ndarray, end: np.ndarray) -> tuple[float, float]:
    """Slope and value at number 0 of the Theil-Sen line, which single late ends do not move.

    Args:
      number: [ends] of the step.
      end: [ends] its time.
    """
    pairs = itertools.combinations(range(len(number)), 2)
    slope = float(np.median([(end[j] - end[i]) / (number[j] - number[i]) for i, j in pairs]))
    return slope, float(np.median(end - slope * number))
