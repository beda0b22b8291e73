"""Random streams: one seed, and for each purpose a stream of its own."""

from __future__ import annotations

import operator
import zlib

import numpy as np

from jaxroute.errors import InputError


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The random stream of a purpose.

    Streams of different purposes are independent, so that drawing more from one (arrivals, say) leaves what is drawn
    from another (lengths) as it was.

    Args:
      seed: a whole number >= 0.
      purpose: what the stream is for.

    Raises:
      InputError: the seed is no whole number >= 0.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"seed is {seed!r}, must be a whole number >= 0")
    return np.random.default_rng([number, zlib.crc32(purpose.encode())])
