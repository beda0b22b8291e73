"""What a length predictor has to beat: the most common bucket, that of the task, and a linear bag of tokens.

Axis letters: N rows, B buckets, V words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize, sparse, special

FEWEST_ROWS = 2
"""Of the training rows, that a token must occur in to have a weight."""

PENALTY = 1.0
"""Weight of the squared weights against the summed cross-entropy of rows; chosen on validation rows."""

ITERATIONS = 60
"""Of L-BFGS; more of them only fit the training rows closer."""


def majority(bucket: np.ndarray, size: int, rows: int) -> np.ndarray:
    """[rows, B] float64, the share of each bucket among training rows with `bucket`, the same for all rows.

    Args:
      bucket: [N] of training rows.
      size: B.
      rows: to predict.
    """
    shares = np.bincount(bucket, minlength=size) / max(1, len(bucket))
    return np.tile(shares, (rows, 1))


def task_majority(bucket: np.ndarray, task: np.ndarray, size: int, asked: np.ndarray) -> np.ndarray:
    """[M, B] float64, the shares among the training rows of the same task; of all where it has none.

    Args:
      bucket: [N] of training rows.
      task: [N] their tasks.
      size: B.
      asked: [M] tasks of the rows to predict.
    """
    shares = majority(bucket, size, len(asked))
    for name in np.unique(task):
        shares[asked == name] = majority(bucket[task == name], size, 1)
    return shares


class BagOfTokens:
    """Multinomial logistic regression on which tokens occur in the whole prompt, how many there are, and the task.

    A row's features: log(1 + count) of each token, divided by the row's norm; log(1 + number of tokens) / 8; and, where
    tasks are given, one column each.
    """

    def __init__(
        self, tokens: Sequence[np.ndarray], bucket: np.ndarray, size: int, *, task: np.ndarray | None = None
    ) -> None:
        """Fits it by L-BFGS.

        Args:
          tokens: N arrays, ids of each training prompt.
          bucket: [N] their buckets.
          size: B.
          task: [N] their tasks, if it is to know them.
        """
        words = np.concatenate([np.unique(each) for each in tokens]) if len(tokens) else np.zeros(0, np.int64)
        known, rows = np.unique(words, return_counts=True)
        self._words = known[rows >= FEWEST_ROWS]
        self._tasks = None if task is None else np.unique(task)
        inputs = self._inputs(tokens, task)
        wanted = np.eye(size)[bucket]
        shape = (inputs.shape[1], size)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = flat.reshape(shape)
            logs = special.log_softmax(inputs @ weights, axis=1)
            gradient = inputs.T @ (np.exp(logs) - wanted) + PENALTY * weights
            value = -np.sum(logs * wanted) + PENALTY / 2 * np.sum(weights**2)
            return float(value), np.asarray(gradient).ravel()

        start = np.zeros(shape[0] * shape[1])
        found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
        self._weights = found.x.reshape(shape)

    def predict(self, tokens: Sequence[np.ndarray], task: np.ndarray | None = None) -> np.ndarray:
        """[M, B] float64 probabilities; arguments as those it was fitted on."""
        return np.asarray(special.softmax(self._inputs(tokens, task) @ self._weights, axis=1))

    def _inputs(self, tokens: Sequence[np.ndarray], task: np.ndarray | None) -> sparse.csr_matrix:
        lengths = np.asarray([len(each) for each in tokens], np.int64)
        ids = np.concatenate(tokens) if len(tokens) else np.zeros(0, np.int64)
        rows = np.repeat(np.arange(len(tokens)), lengths)
        column = np.searchsorted(self._words, ids)
        known = column < len(self._words)
        known[known] = self._words[column[known]] == ids[known]
        ones = np.ones(int(known.sum()))
        bag = sparse.csr_matrix((ones, (rows[known], column[known])), shape=(len(tokens), len(self._words)))
        bag.data = np.log1p(bag.data)
        norm = np.sqrt(np.asarray(bag.multiply(bag).sum(axis=1)).ravel())
        bag = sparse.diags(1 / np.maximum(norm, 1e-9)) @ bag
        columns = [np.ones(len(tokens)), np.log1p(lengths) / 8]
        if self._tasks is not None and task is not None:
            columns += [(task == name).astype(np.float64) for name in self._tasks]
        return sparse.csr_matrix(sparse.hstack([bag, sparse.csr_matrix(np.column_stack(columns))]))
