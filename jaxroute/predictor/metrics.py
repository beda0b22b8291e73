"""How good predicted length buckets are; NumPy only.

Axis letters: N rows, B buckets.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.predictor.buckets import Buckets

CALIBRATION_BINS = 15
"""Of equal width, as Guo et al. 2017 (arXiv 1706.04599) use them."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of the predictions for N rows.

    Attributes:
      n: N.
      top1: share of the rows whose bucket is right.
      macro_f1: mean F1 of the buckets that occur among the true or the predicted ones.
      off_by_one: share of the rows whose bucket is right or a neighbour of it.
      ece: expected calibration error of the predicted bucket's probability, see `calibration_error`.
      token_mae: mean absolute difference of the tokens that stand for the predicted bucket from the true ones.
    """

    n: int
    top1: float
    macro_f1: float
    off_by_one: float
    ece: float
    token_mae: float


def score(probabilities: np.ndarray, output_tokens: np.ndarray, buckets: Buckets) -> Scores:
    """Scores of predictions; nan for each where there are no rows.

    Args:
      probabilities: [N, B], rows that sum to 1.
      output_tokens: [N] true lengths.
      buckets: what is predicted.
    """
    rows = len(output_tokens)
    if not rows:
        return Scores(0, *[float("nan")] * 5)
    true, predicted = buckets.bucket_of(output_tokens), probabilities.argmax(axis=1)
    tokens = np.asarray(buckets.representative)[predicted]
    return Scores(
        n=rows,
        top1=float(np.mean(true == predicted)),
        macro_f1=macro_f1(true, predicted),
        off_by_one=float(np.mean(np.abs(true - predicted) <= 1)),
        ece=calibration_error(probabilities.max(axis=1), true == predicted),
        token_mae=float(np.mean(np.abs(tokens - output_tokens))),
    )


def macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the buckets of 2 * hits / (true + predicted); those that occur in neither [N] array are left out."""
    size = 1 + max(int(true.max()), int(predicted.max()))
    hits = np.bincount(true[true == predicted], minlength=size)
    both = np.bincount(true, minlength=size) + np.bincount(predicted, minlength=size)
    return float(np.mean(2 * hits[both > 0] / both[both > 0]))


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |mean confidence - share right| of each bin, weighted by its rows.

    Args:
      confidence: [N] probability of what was predicted.
      right: [N] bool.
    """
    which = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(which, weights=confidence - right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))
