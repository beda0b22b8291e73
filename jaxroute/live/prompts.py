"""Prompts of an exact length: random token ids, so that no tokenizer has a say and no prefix cache can hit."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

FIRST_ID, END_ID = 256, 4000
"""Token ids that every vocabulary has and that stand for no special token: those lie at its ends."""


def random_prompts(lengths: Sequence[int] | np.ndarray, seed: int | None = None) -> list[list[int]]:
    """Prompts of the given lengths, tokens.

    Args:
      lengths: of each prompt, tokens.
      seed: of the ids; None for a fresh one, so that a server has never seen any of them.
    """
    rng = np.random.default_rng(secrets.randbits(128) if seed is None else seed)
    return [rng.integers(FIRST_ID, END_ID, size=int(length)).tolist() for length in lengths]
