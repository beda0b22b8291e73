"""A trained predictor as data, in NumPy: its network, buckets, tokenizer, and how well it was measured to predict.

Axis letters: B buckets, K tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxroute.errors import InputError
from jaxroute.predictor.buckets import Buckets
from jaxroute.predictor.confusion import Confusion
from jaxroute.predictor.shape import PredictorConfig, predictor_shapes
from jaxroute.predictor.tokenizer import FEATURES, PromptTokenizer
from jaxroute.predictor.weights import check_tensors

FORMAT_VERSION = 1
"""Of the files that this version writes and reads."""

HINTS = ("never", "optional", "required")

RETRAIN = "train it again, or use the version of jaxroute that wrote it"


@dataclasses.dataclass(frozen=True, eq=False)
class PredictorFile:
    """A trained predictor.

    Attributes:
      name: what the training called it.
      config: sizes of the network.
      buckets: the B output lengths that it tells apart.
      tasks: names of the K tasks whose hints it was trained with, in the order of the task head.
      hint: whether a prompt's task is appended to it: `never`; `optional`, trained with and without, so that a request
        without a task is predicted without; `required`, so that a task that is not given is first predicted from the
        prompt, by the task head.
      max_tokens, tail_tokens: how prompts are cut, see `PromptTokenizer`.
      majority: most common bucket of the training rows.
      task_majority: [K], that of each task.
      confusion: measured on rows that neither training nor selection saw.
      training: facts about the training and its measurements, in JSON's types.
      weights: float32 arrays by the names of `predictor_shapes`.
      tokenizer: content of the `tokenizer.json`.
      features: names of the numeric features.
      float16: whether the weights are written in float16; they must have been rounded to it.
      format_version: of the file.
    """

    name: str
    config: PredictorConfig
    buckets: Buckets
    tasks: tuple[str, ...]
    hint: str
    max_tokens: int
    tail_tokens: int
    majority: int
    task_majority: tuple[int, ...]
    confusion: Confusion
    training: Mapping[str, object]
    weights: Mapping[str, np.ndarray] = dataclasses.field(repr=False)
    tokenizer: str = dataclasses.field(repr=False)
    features: tuple[str, ...] = FEATURES
    float16: bool = False
    format_version: int = FORMAT_VERSION

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        return sum(array.size for array in self.weights.values())

    def tokens_of(self, *, place: str = "tokenizer.json") -> PromptTokenizer:
        """Its tokenizer, which errors call `place`."""
        return PromptTokenizer(self.tokenizer, max_tokens=self.max_tokens, tail_tokens=self.tail_tokens, place=place)


def rounded_to_float16(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights as a file in float16 gives them back."""
    with np.errstate(over="ignore"):
        return {name: np.asarray(array, np.float16).astype(np.float32) for name, array in weights.items()}


def check_predictor(file: PredictorFile, facts: str, weights: str, tokenizer: str) -> None:
    """Checks that this version can run the predictor.

    Args:
      file: the predictor.
      facts: what an error calls the place of everything but the weights and the tokenizer.
      weights: what an error calls the place of the weights.
      tokenizer: what an error calls the place of the tokenizer.

    Raises:
      InputError: names what it cannot run, and the remedy.
    """
    if file.format_version != FORMAT_VERSION:
        raise InputError(
            f"{facts}: format_version is {file.format_version!r}, but this version reads {FORMAT_VERSION}; {RETRAIN}"
        )
    _check_tasks(file, facts)
    _check_counts(file, facts)
    config = file.config
    if file.features != FEATURES or config.features != len(FEATURES):
        raise InputError(
            f"{facts}: features is {list(file.features)}, this version computes {list(FEATURES)}; {RETRAIN}"
        )
    if config.buckets != len(file.buckets):
        raise InputError(f"{facts}: the network has {config.buckets} buckets, {len(file.buckets)} are described")
    if config.encoder.max_position < file.max_tokens:
        raise InputError(
            f"{facts}: max_tokens is {file.max_tokens}, but the network has {config.encoder.max_position} positions"
        )
    checked = check_tensors(file.weights, predictor_shapes(config), weights)
    if file.float16 and any((rounded != checked[name]).any() for name, rounded in rounded_to_float16(checked).items()):
        raise InputError(f"{weights}: is to be float16, but its numbers are not rounded to it; {RETRAIN}")
    vocabulary = file.tokens_of(place=tokenizer).vocab_size
    if vocabulary > config.encoder.vocab_size:
        raise InputError(
            f"{tokenizer}: has {vocabulary:,} words, the network {config.encoder.vocab_size:,}; take all files of a "
            "predictor from one training"
        )


def _check_tasks(file: PredictorFile, place: str) -> None:
    if file.hint not in HINTS:
        raise InputError(f"{place}: hint is {file.hint!r}; known: {', '.join(HINTS)}")
    if len(set(file.tasks)) != len(file.tasks) or not all(file.tasks):
        raise InputError(f"{place}: tasks is {list(file.tasks)}, must be names that differ")
    if file.config.tasks not in (0, len(file.tasks)):
        raise InputError(f"{place}: the network tells {file.config.tasks} tasks apart, {len(file.tasks)} are named")
    if file.hint == "required" and not file.config.tasks:
        raise InputError(f"{place}: hint is required, but the network has no head that predicts tasks; {RETRAIN}")


def _check_counts(file: PredictorFile, place: str) -> None:
    buckets, tasks = len(file.buckets), len(file.tasks)
    if len(file.task_majority) != tasks:
        raise InputError(f"{place}: task_majority has {len(file.task_majority)} entries for {tasks} tasks; {RETRAIN}")
    for bucket in (file.majority, *file.task_majority):
        if not 0 <= bucket < buckets:
            raise InputError(f"{place}: a most common bucket is {bucket}, must be from 0 to {buckets - 1}; {RETRAIN}")
    for name, counts, shape in (
        ("overall", file.confusion.overall, (buckets, buckets)),
        ("by_task", file.confusion.by_task, (tasks, buckets, buckets)),
    ):
        if counts.shape != shape or (counts < 0).any():
            raise InputError(f"{place}: confusion.{name} must hold counts {list(shape)}; {RETRAIN}")
