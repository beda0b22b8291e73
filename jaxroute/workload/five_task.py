"""The paper's main workload: five tasks with their own prompt and output lengths (its Table 1).

The paper prints, for each task, the number of samples, the mean prompt and output length, and the share of long
outputs. The distributions with those figures are ours:

- a prompt is lognormal with sigma 0.6, rounded, within 1 to 1,000 tokens (the paper keeps prompts up to 1,000);
- an output is long (250 tokens or more) with the printed share. A long one is 250 plus an exponential number of tokens,
  up to 1,024; a short one is lognormal with sigma 0.8, within 1 to 249.

The medians are solved so that the expectations after rounding and truncation are the printed means. How far a long
output exceeds 250 is not printed: it is chosen for each task so that the short part comes out between 36 and 180.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from jaxroute.workload.arrivals import arrival_times
from jaxroute.workload.table import RequestTable

LONG_TOKENS = 250
MOST_PROMPT_TOKENS = 1000
MOST_OUTPUT_TOKENS = 1024
PROMPT_SIGMA = 0.6
SHORT_SIGMA = 0.8


@dataclasses.dataclass(frozen=True)
class Task:
    """One task as the paper prints it.

    Attributes:
      name: of the task.
      samples: requests of it in the paper's data set of 31,329.
      mean_prompt: tokens.
      mean_output: tokens.
      long_share: share of outputs of `LONG_TOKENS` or more.
      long_excess: mean of a long output above `LONG_TOKENS`, before truncation, tokens (ours).
    """

    name: str
    samples: int
    mean_prompt: float
    mean_output: float
    long_share: float
    long_excess: float


TASKS = (
    Task("translation", 7351, 29.09, 61.76, 0.0918, 60.0),
    Task("sentiment", 6564, 211.54, 142.53, 0.4101, 40.0),
    Task("qa_context", 7122, 125.16, 220.02, 0.4795, 100.0),
    Task("qa_open", 6988, 29.83, 334.40, 0.5818, 220.0),
    Task("ner", 3304, 26.41, 64.10, 0.0871, 60.0),
)
"""Books, IMDb, SQuAD, ELI5 and WNUT."""

TASK_NAMES = tuple(task.name for task in TASKS)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A distribution of whole token counts, by its probabilities.

    Attributes:
      tokens: [K] int64, the possible lengths.
      probability: [K] float64, their probabilities.
    """

    tokens: np.ndarray
    probability: np.ndarray

    @property
    def mean(self) -> float:
        """Expected tokens."""
        return float(self.tokens @ self.probability)

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """[count] int64, independent draws; by inversion, so that each takes one random number."""
        return self.tokens[np.searchsorted(np.cumsum(self.probability[:-1]), rng.random(count), side="right")]


def five_task(
    requests: int, rate: float, seed: int, *, arrivals: str = "poisson", cv: float = 1.0, name: str = "five-task"
) -> RequestTable:
    """Requests of the five tasks in the paper's shares.

    Arrivals, tasks and lengths come from streams of their own: the same seed gives the same requests at any rate.

    Args:
      requests: N.
      rate: mean requests per second.
      seed: of all streams.
      arrivals: a process of `arrivals.PROCESSES`.
      cv: coefficient of variation of the gaps under `gamma`.
      name: of the table.
    """
    streams = np.random.default_rng([seed, 0x66697665]).spawn(4)
    shares = np.asarray([task.samples for task in TASKS], np.float64)
    task = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], streams[1].random(requests), side="right")
    prompt, output = np.zeros(requests, np.int64), np.zeros(requests, np.int64)
    uniform_prompt, uniform_output = streams[2], streams[3]
    for index, kind in enumerate(TASKS):
        rows = np.flatnonzero(task == index)
        prompt[rows] = prompt_lengths(kind).draw(len(rows), uniform_prompt)
        output[rows] = output_lengths(kind).draw(len(rows), uniform_output)
    times = arrival_times(arrivals, requests, rate, streams[0], cv=cv)
    return RequestTable.create(times, prompt, output, task=task, task_names=TASK_NAMES, name=name)


@functools.cache
def prompt_lengths(task: Task) -> Lengths:
    """Prompt lengths of a task: a truncated lognormal with the printed mean."""
    return _lognormal(task.mean_prompt, PROMPT_SIGMA, MOST_PROMPT_TOKENS)


@functools.cache
def output_lengths(task: Task) -> Lengths:
    """Output lengths of a task: the printed mean and share of long ones hold exactly in expectation."""
    long = _shifted_exponential(task.long_excess)
    short_mean = (task.mean_output - task.long_share * long.mean) / (1 - task.long_share)
    short = _lognormal(short_mean, SHORT_SIGMA, LONG_TOKENS - 1)
    return Lengths(
        np.concatenate([short.tokens, long.tokens]),
        np.concatenate([(1 - task.long_share) * short.probability, task.long_share * long.probability]),
    )


def _shifted_exponential(excess: float) -> Lengths:
    tokens = np.arange(LONG_TOKENS, MOST_OUTPUT_TOKENS + 1)
    weight = np.exp(-(tokens - LONG_TOKENS) / excess)
    return Lengths(tokens, weight / weight.sum())


def _lognormal(mean: float, sigma: float, most: int) -> Lengths:
    """Rounded lognormal within 1 to `most`, its median such that the mean is as asked."""
    # Imported late: every command loads this module, and SciPy takes longer to load than all the rest of it.
    from scipy import optimize, special

    def with_log_median(log_median: float) -> Lengths:
        edges = special.ndtr((np.log(np.arange(1, most) + 0.5) - log_median) / sigma)
        return Lengths(np.arange(1, most + 1), np.diff(edges, prepend=0.0, append=1.0))

    solution = optimize.brentq(lambda log_median: with_log_median(log_median).mean - mean, -2.0, np.log(most) + 3)
    return with_log_median(solution)
