"""What each engine step of a run computed, put together from the records of its requests.

A timeline says how long a step took and how many prompt tokens and sequences it computed, not how much context these
attended to. Under prefill-first, and where nothing was preempted, the records of the requests tell: a step that
prefills does nothing else, and in every other step each request that runs yields one token.

Axis letters: K engine steps, R requests.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.errors import InputError
from jaxroute.plots import timeline_of
from jaxroute.results import RunResult, Timeline

SLACK_S = 1e-4
"""By which two times of one event may be apart; the shortest step is a hundred times as long."""


@dataclasses.dataclass(frozen=True)
class StepRecords:
    """K engine steps.

    Attributes:
      instance: [K] int64, where each ran.
      duration_s: [K] float64.
      prefill_tokens: [K] int64, prompt tokens that it computed.
      prefill_requests: [K] int64, prompts that they are of.
      decode_seqs: [K] int64, sequences that it decoded.
      resident_tokens: [K] int64, prompt tokens and output tokens so far of the requests that had their first token
        before; of a decode step, the contexts that it attended to.
    """

    instance: np.ndarray
    duration_s: np.ndarray
    prefill_tokens: np.ndarray
    prefill_requests: np.ndarray
    decode_seqs: np.ndarray
    resident_tokens: np.ndarray

    @property
    def decodes(self) -> np.ndarray:
        """[K] bool, steps that only decode."""
        return (self.prefill_tokens == 0) & (self.decode_seqs > 0)

    def prefills(self, requests: int | None = None) -> np.ndarray:
        """[K] bool, steps that only prefill, of so many prompts if it is said."""
        own = (self.prefill_tokens > 0) & (self.decode_seqs == 0)
        return own if requests is None else own & (self.prefill_requests == requests)


def step_records(result: RunResult) -> StepRecords:
    """The steps of a run under prefill-first.

    Raises:
      InputError: the run has no timeline, something was preempted, or a step prefilled and decoded.
    """
    timeline = timeline_of(result)
    if result.records.preemptions.any():
        raise InputError(f"{result.policy}: requests were preempted; give the servers more KV cache")
    if ((timeline.step_prefill_tokens > 0) & (timeline.step_decode_seqs > 0)).any():
        raise InputError(f"{result.policy}: steps both prefill and decode; simulate with the scheduler prefill-first")
    parts = [_of_instance(result, timeline, instance) for instance in range(result.instances)]
    columns = zip(*(dataclasses.astuple(part) for part in parts), strict=True)
    return StepRecords(*(np.concatenate(column) for column in columns))


def _of_instance(result: RunResult, timeline: Timeline, instance: int) -> StepRecords:
    own = np.flatnonzero(timeline.step_instance == instance)
    own = own[np.argsort(timeline.step_start_s[own], kind="stable")]
    start, seqs, tokens = timeline.step_start_s[own], timeline.step_decode_seqs[own], timeline.step_prefill_tokens[own]
    rows = result.records.instance == instance
    first, finish = result.records.first_token_s[rows], result.records.finish_s[rows]
    # [K, R]: it had its first token and was not at its end when the step began.
    runs = (first <= start[:, None] + SLACK_S) & (finish > start[:, None] + SLACK_S)
    decoded = np.concatenate([[0], np.cumsum(tokens == 0)])
    before = decoded[:-1]
    at_first = decoded[np.searchsorted(start, first - SLACK_S)]
    generated = 1 + before[:, None] - at_first
    resident = (runs * (result.table.prompt_tokens[rows] + generated)).sum(axis=1)
    decodes = tokens == 0
    if (runs.sum(axis=1)[decodes] != seqs[decodes]).any():
        raise ValueError(f"{result.policy}: the records of requests and engine steps of instance {instance} disagree")
    admitted = np.searchsorted(start, result.records.start_s[rows] - SLACK_S)
    return StepRecords(
        instance=np.full(len(own), instance, np.int64),
        duration_s=timeline.step_duration_s[own],
        prefill_tokens=tokens.astype(np.int64),
        prefill_requests=np.bincount(admitted, minlength=len(own))[: len(own)],
        decode_seqs=seqs.astype(np.int64),
        resident_tokens=resident.astype(np.int64),
    )
