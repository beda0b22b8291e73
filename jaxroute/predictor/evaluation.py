"""How well a predictor does on held-out rows, beside what it has to beat: rows of figures, and confusion matrices.

The predictor and the baselines are measured on its own buckets, and, through them, on others: the probability of a
foreign bucket is the sum over the own buckets of their probability times the share of the training rows of the own
bucket that fall into the foreign one. So one model gives all four rows of the paper (unequal and equal buckets, with
and without task). The baselines are fitted on each kind of buckets directly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxroute.errors import InputError
from jaxroute.predictor.baselines import BagOfTokens, majority, task_majority
from jaxroute.predictor.buckets import PAPER_FIRST, PAPER_RATIO, Buckets
from jaxroute.predictor.confusion import NO_TASK, Confusion
from jaxroute.predictor.metrics import Scores, score
from jaxroute.predictor.network_rows import network_probabilities
from jaxroute.predictor.predictor_file import PredictorFile
from jaxroute.predictor.prompts import PromptTable
from jaxroute.predictor.runtime import Network
from jaxroute.predictor.tokenizer import CHARACTERS_PER_TOKEN, PromptTokenizer

PAPER_BUCKETS, PAPER_WIDTH = 4, 512
ALL, LLM_ROWS = "all", "llm"

UNCOMPARABLE = (
    "The paper's own figures cannot be compared with these: unequal and equal buckets 73 and 65 % with the task, 9.3 "
    "and 5.5 % without (its slides; its text has 79.15 and 68.23, 5.5 and 9.3). They are of answers that Llama-2-7B "
    "gave to 31,329 prompts, whose lengths are not at hand. Here the answers are of several other models and of data "
    "sets, and shorter, so that nearly all are in the first of such wide buckets. And the paper has no baseline: 5.5 "
    "and 9.3 % are below what always naming the most common of so few buckets gives."
)
"""Why the paper's figures are not in the table."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Figures of one predictor on some of the rows.

    Attributes:
      model: name of the predictor.
      buckets: what is predicted, such as `quantile-5`; foreign ones are derived, see the module.
      derived: whether they are foreign.
      task_hint: whether the task is behind the prompt.
      rows: `all`, or `llm` for those that a real LLM answered.
      task: of the rows; `all` for any.
      n, top1, macro_f1, off_by_one, ece, token_mae: see `Scores`.
      majority: top-1 of the most common training bucket.
      task_majority: top-1 of the most common training bucket of the task.
      linear: top-1 of the linear bag of tokens, told the task as the predictor is.
    """

    model: str
    buckets: str
    derived: bool
    task_hint: bool
    rows: str
    task: str
    n: int
    top1: float
    macro_f1: float
    off_by_one: float
    ece: float
    token_mae: float
    majority: float
    task_majority: float
    linear: float


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """All of it.

    Attributes:
      rows: by buckets, hint, kind of rows and task.
      confusions: of the model's own buckets, by its name and whether it had the hint.
      buckets: names of its own buckets.
      tasks: names of the tasks of the confusions.
    """

    rows: tuple[Row, ...]
    confusions: Mapping[bool, Confusion]
    buckets: tuple[str, ...]
    tasks: tuple[str, ...]


def paper_buckets(lengths: np.ndarray) -> tuple[Buckets, Buckets]:
    """The paper's unequal and equal buckets, of training lengths [N]."""
    unequal = Buckets.geometric(lengths, PAPER_BUCKETS, first=PAPER_FIRST, ratio=PAPER_RATIO)
    return dataclasses.replace(unequal, kind=f"unequal-{PAPER_FIRST}"), Buckets.equal_width(lengths, PAPER_WIDTH)


def evaluate(
    file: PredictorFile,
    table: PromptTable,
    *,
    split: str = "test",
    linear: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """Measures a predictor.

    Args:
      file: the predictor.
      table: rows of the split, and training rows, which the baselines and the paper's buckets are fitted on.
      split: that is measured on.
      linear: whether to fit the linear baseline, which takes a minute or two; its column is nan without.
      progress: called with what is done, how much of it, and all of it.

    Raises:
      InputError: the file lacks rows of the split, or training rows.
    """
    held_out, train = table.where(split=split), table.where(split="train")
    for name, rows in ((split, held_out), ("train", train)):
        if not len(rows):
            raise InputError(f"prompts: no row of the split {name}; an evaluation needs rows of {split} and of train")
    hints = {"never": (False,), "optional": (True, False), "required": (True, False)}[file.hint]
    probabilities = {hint: _predicted(file, held_out, hint, progress) for hint in hints}
    foreign = paper_buckets(train.output_tokens)
    words = _Words(file, train, held_out) if linear else None
    found: list[Row] = []
    for number, buckets in enumerate((file.buckets, *foreign)):
        through = _shares(file.buckets, buckets, train.output_tokens) if number else np.eye(len(buckets))
        for step, hint in enumerate(hints):
            bag = None if words is None else words.predict(buckets, hint)
            predicted = probabilities[hint] @ through
            found += _rows(file.name, buckets, bool(number), hint, predicted, bag, train, held_out)
            progress("baselines", number * len(hints) + step + 1, 3 * len(hints))
    confusions = {hint: _confusion(file, held_out, values) for hint, values in probabilities.items()}
    return Evaluation(tuple(found), confusions, file.buckets.names(), file.tasks)


def _predicted(
    file: PredictorFile, rows: PromptTable, hint: bool, progress: Callable[[str, int, int], None]
) -> np.ndarray:
    """[N, B]; without a task, a predictor that must have one takes the one that it predicts."""
    network, tokenizer = Network(file.config, file.weights), file.tokens_of()
    known = set(file.tasks)
    tasks: list[str | None] = [task if hint and task in known else None for task in rows.task.tolist()]
    if file.hint == "required":
        for start in range(0, len(tasks), 256):
            unnamed = [n for n in range(start, min(start + 256, len(tasks))) if tasks[n] is None]
            if unnamed:
                output = network([tokenizer.encode(rows.prompt[n]) for n in unnamed])
                for n, best in zip(unnamed, output.tasks.argmax(axis=1), strict=True):
                    tasks[n] = file.tasks[best]
    what = f"predicting, {'with' if hint else 'without'} task"
    return network_probabilities(
        network, tokenizer, rows.prompt, tasks, lambda done, total: progress(what, done, total)
    )


def _shares(own: Buckets, foreign: Buckets, lengths: np.ndarray) -> np.ndarray:
    """[B, B'] share of the training rows of each own bucket in each foreign one; of none, where its middle is."""
    counts = np.zeros((len(own), len(foreign)))
    np.add.at(counts, (own.bucket_of(lengths), foreign.bucket_of(lengths)), 1)
    middle = np.eye(len(foreign))[foreign.bucket_of(np.asarray(own.representative))]
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), middle)


class _Words:
    """The linear baseline on whole prompts in the predictor's own words."""

    def __init__(self, file: PredictorFile, train: PromptTable, held_out: PromptTable) -> None:
        tokenizer = file.tokens_of()
        self._train, self._held_out = train, held_out
        self._of_train, self._of_held_out = (_whole(tokenizer, rows.prompt) for rows in (train, held_out))

    def predict(self, buckets: Buckets, hint: bool) -> np.ndarray:
        """[N, B] probabilities."""
        bucket = buckets.bucket_of(self._train.output_tokens)
        bag = BagOfTokens(self._of_train, bucket, len(buckets), task=self._train.task if hint else None)
        return bag.predict(self._of_held_out, self._held_out.task if hint else None)


def _whole(tokenizer: PromptTokenizer, prompts: Sequence[str]) -> list[np.ndarray]:
    """Ids of whole prompts, as far as a time limit for absurdly long ones allows."""
    longest = max((len(prompt) for prompt in prompts), default=1)
    most = max(tokenizer.max_tokens, min(longest, 100_000) // CHARACTERS_PER_TOKEN + 1, 8192)
    whole = PromptTokenizer(tokenizer.content, max_tokens=most)
    return [whole.encode(prompt).tokens[1:-1] for prompt in prompts]


def _rows(
    model: str,
    buckets: Buckets,
    derived: bool,
    hint: bool,
    predicted: np.ndarray,
    bag: np.ndarray | None,
    train: PromptTable,
    held_out: PromptTable,
) -> list[Row]:
    """All rows and those of an LLM, over all tasks and of each."""
    bucket, size = buckets.bucket_of(train.output_tokens), len(buckets)
    common = majority(bucket, size, len(held_out))
    by_task = task_majority(bucket, train.task, size, held_out.task)

    def top1(probabilities: np.ndarray | None, keep: np.ndarray) -> float:
        if probabilities is None:
            return float("nan")
        return score(probabilities[keep], held_out.output_tokens[keep], buckets).top1

    found = []
    for task in (ALL, *held_out.tasks()):
        for kind in (ALL, LLM_ROWS):
            keep = np.ones(len(held_out), bool) if task == ALL else held_out.task == task
            keep = keep & (held_out.is_llm if kind == LLM_ROWS else True)
            if not keep.any():
                continue
            scores: Scores = score(predicted[keep], held_out.output_tokens[keep], buckets)
            found.append(
                Row(
                    model=model,
                    buckets=buckets.kind,
                    derived=derived,
                    task_hint=hint,
                    rows=kind,
                    task=task,
                    **dataclasses.asdict(scores),
                    majority=top1(common, keep),
                    task_majority=top1(by_task, keep),
                    linear=top1(bag, keep),
                )
            )
    return found


def _confusion(file: PredictorFile, rows: PromptTable, probabilities: np.ndarray) -> Confusion:
    number = {task: index for index, task in enumerate(file.tasks)}
    task = np.asarray([number.get(name, NO_TASK) for name in rows.task.tolist()], np.int64)
    true, found = file.buckets.bucket_of(rows.output_tokens), probabilities.argmax(axis=1)
    return Confusion.measured(true, found, task, buckets=len(file.buckets), tasks=len(file.tasks))
