"""A predictor that predicts: prompts and tasks in, length buckets out; NumPy, no jax, one thread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from jaxroute.predictor.folder import find_predictor, read_predictor
from jaxroute.predictor.hint import known_task
from jaxroute.predictor.predictor_file import PredictorFile
from jaxroute.predictor.runtime import Network

TaskSource = Literal["given", "predicted", "none"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is predicted of one request's output length.

    Attributes:
      bucket: most probable length bucket.
      tokens: output tokens that stand for it.
      upper: most output tokens of it.
      probability: that the network gives the bucket; nan for a fallback.
      expected_tokens: mean of what the buckets stand for, weighted by their probabilities; `tokens` for a fallback.
      task: the request's task, if it is known.
      task_source: whether the client named the task, or the network did.
      fallback: why the network was not asked or not waited for; None where this is what it says.
    """

    bucket: int
    tokens: int
    upper: int
    probability: float
    expected_tokens: float
    task: str | None
    task_source: TaskSource
    fallback: str | None = None


class Predictor:
    """Predicts with one network; threads must not share it at the same time.

    Attributes:
      file: what it runs.
      tokenizer: its tokenizer.
    """

    def __init__(self, file: PredictorFile) -> None:
        self.file = file
        self.tokenizer = file.tokens_of()
        self._network = Network(file.config, file.weights)
        self._representative = np.asarray(file.buckets.representative, np.float64)

    @classmethod
    def load(cls, name: str | Path = "default") -> Predictor:
        """The predictor of a folder, or the shipped one.

        Raises:
          InputError: there is none, or it is damaged.
        """
        return cls(read_predictor(find_predictor(name)))

    def predict(self, requests: Sequence[tuple[str, str | None]]) -> list[Estimate]:
        """Predicts R prompts, each with its task as the client named it, or None.

        A task that the predictor does not know counts as none. Where the network needs a task to be named and none is,
        it is asked for the task first; where it can do without, it predicts bucket and task from the prompt alone.
        """
        if not requests:
            return []
        file = self.file
        prompts = [prompt for prompt, _ in requests]
        given = [known_task(task, file.tasks) for _, task in requests]
        likely: list[str | None] = [None] * len(prompts)
        hints = given if file.hint != "never" else likely
        if file.hint == "required" and None in given:
            unnamed = [number for number, task in enumerate(given) if task is None]
            output = self._network([self.tokenizer.encode(prompts[number]) for number in unnamed])
            for number, best in zip(unnamed, output.tasks.argmax(axis=1), strict=True):
                likely[number] = file.tasks[best]
            hints = [named or guessed for named, guessed in zip(given, likely, strict=True)]
        output = self._network(self.tokenizer.encode_all(prompts, hints))
        if file.hint != "required" and file.config.tasks:
            likely = [file.tasks[best] for best in output.tasks.argmax(axis=1)]
        probabilities = _softmax(output.buckets)
        return [
            self._estimate(row, named, guessed)
            for row, named, guessed in zip(probabilities, given, likely, strict=True)
        ]

    def fallback(self, task: object, reason: str) -> Estimate:
        """The most common bucket of the task that the client named, or else of all; needs no network."""
        file = self.file
        named = known_task(task, file.tasks)
        bucket = file.majority if named is None else file.task_majority[file.tasks.index(named)]
        tokens, upper = file.buckets.representative[bucket], file.buckets.upper[bucket]
        source: TaskSource = "none" if named is None else "given"
        return Estimate(bucket, tokens, upper, float("nan"), float(tokens), named, source, reason)

    def _estimate(self, probabilities: np.ndarray, given: str | None, likely: str | None) -> Estimate:
        bucket = int(probabilities.argmax())
        source: TaskSource = "given" if given is not None else "none" if likely is None else "predicted"
        return Estimate(
            bucket=bucket,
            tokens=self.file.buckets.representative[bucket],
            upper=self.file.buckets.upper[bucket],
            probability=float(probabilities[bucket]),
            expected_tokens=float(probabilities @ self._representative),
            task=given if given is not None else likely,
            task_source=source,
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    """[R, B] float64, rows that sum to 1."""
    values = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))
