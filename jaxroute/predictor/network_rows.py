"""Probabilities of many prompts by the network in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from jaxroute.predictor.runtime import Network
from jaxroute.predictor.tokenizer import PromptTokenizer

AT_ONCE = 256
"""Prompts between two reports of progress."""


def network_probabilities(
    network: Network,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    tasks: Sequence[str | None],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """[N, B] float64, probabilities of the buckets.

    Args:
      network: the network.
      tokenizer: its tokenizer.
      prompts: N texts.
      tasks: N names whose hint is appended, or None for none.
      progress: called with the prompts done and all of them.
    """
    found = [np.zeros((0, network.config.buckets), np.float64)]
    for start in range(0, len(prompts), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        output = network(tokenizer.encode_all(prompts[part], tasks[part]))
        found.append(special.softmax(output.buckets.astype(np.float64), axis=1))
        progress(min(len(prompts), start + AT_ONCE), len(prompts))
    return np.concatenate(found)
