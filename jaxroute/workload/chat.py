"""A chat service: prompts and answers of widely spread lengths, where nobody has a trace of their own to hand.

Lognormal lengths, as production traces have them. The numbers are round ones of ours: they stand for no one service.
"""

from __future__ import annotations

import numpy as np

from jaxroute.workload.arrivals import arrival_times
from jaxroute.workload.table import RequestTable

MEDIAN_PROMPT_TOKENS, PROMPT_SIGMA, MOST_PROMPT_TOKENS = 600.0, 1.2, 3000
MEDIAN_OUTPUT_TOKENS, OUTPUT_SIGMA, MOST_OUTPUT_TOKENS = 150.0, 0.9, 1000
"""Median, standard deviation of the logarithm, and the most, of the tokens."""


def chat(
    requests: int, rate: float, seed: int, *, arrivals: str = "poisson", cv: float = 1.0, name: str = "chat"
) -> RequestTable:
    """Requests of a chat service; the same seed gives the same requests at any rate.

    Args:
      requests: N.
      rate: mean requests per second.
      seed: of all streams.
      arrivals: a process of `arrivals.PROCESSES`.
      cv: coefficient of variation of the gaps under `gamma`.
      name: of the table.
    """
    streams = np.random.default_rng([seed, 0x63686174]).spawn(3)
    prompt = _lengths(streams[1], requests, MEDIAN_PROMPT_TOKENS, PROMPT_SIGMA, MOST_PROMPT_TOKENS)
    output = _lengths(streams[2], requests, MEDIAN_OUTPUT_TOKENS, OUTPUT_SIGMA, MOST_OUTPUT_TOKENS)
    return RequestTable.create(arrival_times(arrivals, requests, rate, streams[0], cv=cv), prompt, output, name=name)


def _lengths(rng: np.random.Generator, count: int, median: float, sigma: float, most: int) -> np.ndarray:
    return np.clip(np.rint(median * np.exp(sigma * rng.standard_normal(count))), 1, most).astype(np.int64)
