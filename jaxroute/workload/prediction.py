"""What the router is told of output lengths: a bucket for each request, right or wrong by a stated model."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.errors import InputError
from jaxroute.length_edges import bucket_of
from jaxroute.predictor.confusion import NO_TASK
from jaxroute.workload.table import RequestTable

DEFAULT_EDGES = (1, 32, 64, 128, 256, 512, 1024)
"""Lower edges, in output tokens, of the default buckets: geometric, the last one open."""

CONFUSION = "confusion"
"""Error model: the mistakes of a length predictor as they were measured."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Predicted output lengths of N requests.

    Attributes:
      bucket: [N] int64, predicted bucket.
      tokens: [N] int64, output tokens that stand for the predicted bucket.
      upper: [N] int64, most output tokens of the predicted bucket.
    """

    bucket: np.ndarray
    tokens: np.ndarray
    upper: np.ndarray


def predict(table: RequestTable, model: str, *, seed: int, edges: tuple[int, ...] = DEFAULT_EDGES) -> Prediction:
    """Predicts the bucket of each request by an error model.

    Args:
      table: the requests.
      model: `oracle` (the true bucket), `none` (one value for all: the mean output length), a number such as `0.8`:
        the true bucket with that probability, else one of its neighbours; or `confusion`, the mistakes that the shipped
        length predictor was measured to make on the request's task, `confusion:FOLDER` those of another one.
      seed: of the errors.
      edges: lower edges of the buckets, ascending, the first <= 1.

    A length predictor has buckets of its own, more or fewer of them: `tokens` and `upper` are those of its bucket, and
    `bucket` is where its `tokens` fall by `edges`, so that whatever counts by bucket sees `edges` under every model.

    Raises:
      InputError: an unknown model, or a predictor that cannot be read.
    """
    if (predictor := predictor_of(model)) is not None:
        return _measured(table, predictor, seed=seed, edges=edges)
    true = bucket_of(table.output_tokens, edges)
    stands_for = representatives(table.output_tokens, true, len(edges))
    # The last bucket is open: its longest request closes it.
    most = np.append(np.asarray(edges[1:]) - 1, max(edges[-1], int(table.output_tokens.max())))
    if model == "oracle":
        return Prediction(true, stands_for[true], most[true])
    if model == "none":
        mean = np.full(len(table), max(1, round(float(table.output_tokens.mean()))))
        return Prediction(bucket_of(mean, edges), mean, np.full_like(mean, table.output_tokens.max()))
    accuracy = _accuracy(model)
    rng = np.random.default_rng([seed, 0x70726564])
    neighbour = true + rng.choice([-1, 1], size=len(true))
    off_the_end = (neighbour < 0) | (neighbour >= len(edges))
    neighbour = np.where(off_the_end, 2 * true - neighbour, neighbour)
    bucket = np.where(rng.random(len(true)) < accuracy, true, neighbour)
    return Prediction(bucket, stands_for[bucket], most[bucket])


def predictor_of(model: str) -> str | None:
    """The length predictor whose mistakes an error model stands for, by name or folder; None for other models."""
    name, colon, folder = model.partition(":")
    return (folder if colon else "default") if name == CONFUSION else None


def representatives(output_tokens: np.ndarray, bucket: np.ndarray, buckets: int) -> np.ndarray:
    """[B] int64, the mean output length of each bucket; of an empty one, the overall mean."""
    sums = np.bincount(bucket, weights=output_tokens, minlength=buckets)
    counts = np.bincount(bucket, minlength=buckets)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), output_tokens.mean())
    return np.maximum(1, np.round(means)).astype(np.int64)


def _measured(table: RequestTable, predictor: str, *, seed: int, edges: tuple[int, ...]) -> Prediction:
    """Draws from a predictor's confusion matrices; a task that it does not know is like no task."""
    # Imported late: few workloads need it.
    from jaxroute.predictor.folder import predictor_named
    from jaxroute.predictor.hint import known_task

    file = predictor_named(predictor)
    known = [known_task(name, file.tasks) for name in table.task_names]
    task = np.asarray([NO_TASK if name is None else file.tasks.index(name) for name in known])[table.task]
    rng = np.random.default_rng([seed, 0x70726564])
    bucket = file.confusion.draw(file.buckets.bucket_of(table.output_tokens), task, rng)
    tokens = np.asarray(file.buckets.representative)[bucket]
    return Prediction(bucket_of(tokens, edges), tokens, np.asarray(file.buckets.upper)[bucket])


def _accuracy(model: str) -> float:
    try:
        accuracy = float(model)
    except ValueError:
        accuracy = -1.0
    if not 0 <= accuracy <= 1:
        raise InputError(
            f"prediction {model!r}: must be oracle, none, confusion, confusion:FOLDER or a probability such as 0.8"
        )
    return accuracy
