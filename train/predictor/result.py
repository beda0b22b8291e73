"""From the weights of a finished training to a predictor folder's content, measured on the rows kept back for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import numpy as np

from jaxroute.predictor.buckets import Buckets
from jaxroute.predictor.confusion import NO_TASK, Confusion
from jaxroute.predictor.network_rows import network_probabilities
from jaxroute.predictor.predictor_file import PredictorFile, rounded_to_float16
from jaxroute.predictor.prompts import PromptTable
from jaxroute.predictor.runtime import Network
from jaxroute.train.predictor.config import PredictorTrainConfig
from jaxroute.train.predictor.network import Params, Start, hugging_face

HINTS = {"never": "never", "optional": "optional", "always": "required"}
"""What a folder calls a training's `fit.hint`; a network that must have the hint predicts a task that is not named."""


def predictor_file(
    config: PredictorTrainConfig,
    start: Start,
    params: Params,
    *,
    train: PromptTable,
    held_out: PromptTable,
    buckets: Buckets,
    tasks: Sequence[str],
    facts: Mapping[str, object],
) -> PredictorFile:
    """What is written, with the confusion matrix of the held-out rows.

    Args:
      config: of the training.
      start: what it started from.
      params: the chosen weights, for plain features and vectors.
      train: its rows.
      held_out: rows that neither training nor selection saw; there may be none.
      buckets: what is predicted.
      tasks: K names.
      facts: about the training, in JSON's types.
    """
    weights = hugging_face(params)
    if config.float16:
        weights = rounded_to_float16(weights)
    bucket = buckets.bucket_of(train.output_tokens)
    return PredictorFile(
        name=config.name,
        config=start.config,
        buckets=buckets,
        tasks=tuple(tasks),
        hint=HINTS[config.fit.hint],
        max_tokens=config.encoder.max_tokens,
        tail_tokens=config.encoder.tail_tokens,
        majority=_most_common(bucket, len(buckets)),
        task_majority=tuple(_most_common(bucket[train.task == task], len(buckets)) for task in tasks),
        confusion=_confusion(config, start, weights, held_out, buckets, tasks),
        training={**facts, "rows": len(train), "jaxroute": version("jaxroute")},
        weights=weights,
        tokenizer=start.tokenizer.content,
        float16=config.float16,
    )


def _confusion(
    config: PredictorTrainConfig,
    start: Start,
    weights: Mapping[str, np.ndarray],
    rows: PromptTable,
    buckets: Buckets,
    tasks: Sequence[str],
) -> Confusion:
    """Overall without any hint where the predictor can do without; by task with it where it takes one."""
    true = buckets.bucket_of(rows.output_tokens)
    number = {task: index for index, task in enumerate(tasks)}
    task = np.asarray([number.get(name, NO_TASK) for name in rows.task.tolist()], np.int64)
    network = Network(start.config, weights)

    def measured(hinted: bool) -> Confusion:
        hints = [name if hinted and name in number else None for name in rows.task.tolist()]
        found = network_probabilities(network, start.tokenizer, rows.prompt, hints).argmax(axis=1)
        return Confusion.measured(true, found, task, buckets=len(buckets), tasks=len(tasks))

    hinted = measured(config.fit.hint != "never")
    return hinted if config.fit.hint != "optional" else Confusion(measured(False).overall, hinted.by_task)


def _most_common(bucket: np.ndarray, size: int) -> int:
    return int(np.bincount(bucket, minlength=size).argmax())
