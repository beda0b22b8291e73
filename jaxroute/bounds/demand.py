"""What a request needs of a server at the least, whatever runs beside it: time, and a share of the server's time.

Every number here is a lower bound under all three schedulers, all batching orders and any number of preemptions. What
they rest on (design: a request stays on one server, whose engine steps follow each other):

1. A request of P prompt and D output tokens yields D tokens, each at the end of another step. The first needs all P
   prompt tokens computed. The (y + 1)-th, with y already yielded, needs either a decode with a context of P + y tokens
   or, after a preemption, a prefill of P + y tokens from an empty cache. The steps that a yield needs come after the
   yield before. So a request goes through D *portions* in disjoint spans of time: a prefill, then D - 1 times the
   cheaper of decode and prefill.
2. A step takes max(W, h + g (p + n)) + d C + e n + f sum p_i^2 + x sum p_i k_i + u [p > 0] + v [n > 0], where no term
   is negative and each grows with what is added to the step: it takes no less than the request's part alone would.
3. A prefill of K tokens in chunks p_1 .. p_c, each after the ones before: sum k_j p_j = (K^2 - sum p_j^2) / 2, so
   f sum p_j^2 + x sum p_j k_j lies between min(f, x / 2) K^2 and max(f, x / 2) K^2; in one chunk it is f K^2. Only
   `chunked` cuts prompts. c chunks take at least max(c W, c h + g K) + c u on top.
4. The fixed part of a step is shared by what is in it. A request's *share* of a step is any of 1 / max_num_seqs, its
   tokens / max_num_batched_tokens, its KV blocks / kv_blocks, or a weighted mean of them: the engine's limits say that
   the shares in one step add up to at most 1. And max(W, h + g t) >= l W + (1 - l) (h + g t) for every l in [0, 1]. So

       T >= sum over the requests of (l W + (1 - l) h + u or v) share + (1 - l) g tokens + its own d, e, f, x terms

   and the terms of this sum, the *work* of the portions, use up no more than the server's time. A portion that is a
   prefill in several chunks has at least the work given here: its shares and tokens add up to those of a single chunk
   or more, its blocks are those of its last step.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from jaxroute.profiles import StepProfile
from jaxroute.workload.table import RequestTable

PREFIXES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a request's portions, from the first on, whose work is counted; 0 stands for the prefill alone."""

NO_WORK_S = 1e-12


@dataclasses.dataclass(frozen=True)
class Sharing:
    """One way to charge the fixed part of a step to the requests in it; every one gives a valid bound.

    Attributes:
      flat: l, weight of W against h + g t.
      by_count, by_tokens, by_blocks: weights of the three shares, >= 0, with the sum 1.
    """

    flat: float
    by_count: float
    by_tokens: float
    by_blocks: float


@dataclasses.dataclass(frozen=True)
class Demand:
    """What N requests need of one server.

    Attributes:
      alone_s: [N] least time from the start of the first step to the last token.
      work_s: [N, len(PREFIXES)] least share of the server's time, of the counted portions.
      tail_s: [N, len(PREFIXES)] least time from the mean moment of that work to the last token.
    """

    alone_s: np.ndarray
    work_s: np.ndarray
    tail_s: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Portions:
    """The portions of N requests, one behind the other.

    Attributes:
      known: [K] tokens in the cache when the portion is done (prompt and yielded ones).
      is_first: [K] whether it is the request's first.
      starts: [N] first portion of each request.
      count: [N] portions of each request, D.
    """

    known: np.ndarray
    is_first: np.ndarray
    starts: np.ndarray
    count: np.ndarray


def sharings() -> Iterator[Sharing]:
    """Some ways to share: all of one kind, and halves of two."""
    for flat, (count, tokens, blocks) in itertools.product((0.0, 0.5, 1.0), _halves()):
        yield Sharing(flat, count, tokens, blocks)


def demand(table: RequestTable, profile: StepProfile, scheduler: str, sharing: Sharing) -> Demand:
    """What the requests of a table need of one server under one way of sharing; see the module."""
    portions = _portions(table)
    chunked = scheduler == "chunked"
    decode_s, prefill_s = _decode_s(portions, profile), _prefill_s(portions, profile, chunked)
    least_s = np.where(portions.is_first, prefill_s, np.minimum(decode_s, prefill_s))
    decode_work, prefill_work = _work_s(portions, profile, chunked, sharing)
    work = np.where(portions.is_first, prefill_work, np.minimum(decode_work, prefill_work))
    after = _sum_after(least_s, portions)
    to_the_end = after + _last_step_s(portions, profile, chunked, prefill_s) / 2
    counts = [np.maximum(1, np.ceil(share * portions.count)).astype(np.int64) for share in PREFIXES]
    # A profile may charge nothing for some portions; a picosecond keeps them apart from no work.
    works = np.maximum(np.stack([_sum_first(work, portions, count) for count in counts], axis=1), NO_WORK_S)
    moments = np.stack([_sum_first(work * to_the_end, portions, count) for count in counts], axis=1)
    return Demand(
        alone_s=np.add.reduceat(least_s, portions.starts),
        work_s=works,
        tail_s=moments / works,
    )


def _halves() -> Iterator[tuple[float, float, float]]:
    for one, other in itertools.combinations_with_replacement(range(3), 2):
        weights = [0.0, 0.0, 0.0]
        weights[one] += 0.5
        weights[other] += 0.5
        yield (weights[0], weights[1], weights[2])


def _portions(table: RequestTable) -> _Portions:
    count = table.output_tokens
    starts = np.concatenate([[0], np.cumsum(count)[:-1]])
    yielded = np.arange(int(count.sum())) - np.repeat(starts, count)
    return _Portions(np.repeat(table.prompt_tokens, count) + yielded, yielded == 0, starts, count)


def _decode_s(portions: _Portions, profile: StepProfile) -> np.ndarray:
    """[K] time of a step that decodes the request alone."""
    c = profile.coefficients_ms
    return (max(c["W"], c["h"] + c["g"]) + c["d"] * portions.known + c["e"] + c["v"]) / 1e3


def _prefill_s(portions: _Portions, profile: StepProfile, chunked: bool) -> np.ndarray:
    """[K] least time of the steps that prefill all known tokens, in the best number of chunks (point 3)."""
    c, tokens = profile.coefficients_ms, portions.known.astype(np.float64)

    def in_chunks(chunks: np.ndarray) -> np.ndarray:
        linear = np.maximum(chunks * c["W"], chunks * c["h"] + c["g"] * tokens) + chunks * c["u"]
        square = np.where(chunks == 1, c["f"], min(c["f"], c["x"] / 2))
        return np.asarray(linear + square * tokens**2)

    whole = in_chunks(np.ones_like(tokens))
    if not chunked:
        return whole / 1e3
    fewest = np.ceil(tokens / profile.max_num_batched_tokens)
    # All terms but the square, which no longer falls, grow with the number of chunks.
    cut = in_chunks(np.maximum(fewest, 2))
    return np.where(fewest > 1, cut, np.minimum(whole, cut)) / 1e3


def _work_s(
    portions: _Portions, profile: StepProfile, chunked: bool, sharing: Sharing
) -> tuple[np.ndarray, np.ndarray]:
    """[K] work of each portion as a decode, and as a prefill (point 4)."""
    c, tokens = profile.coefficients_ms, portions.known.astype(np.float64)
    fixed = sharing.flat * c["W"] + (1 - sharing.flat) * c["h"]
    by_token = (1 - sharing.flat) * c["g"]
    blocks = np.ceil(tokens / profile.block_size) / profile.kv_blocks
    common = sharing.by_count / profile.max_num_seqs + sharing.by_blocks * blocks
    decode_share = common + sharing.by_tokens / profile.max_num_batched_tokens
    prefill_share = common + sharing.by_tokens * tokens / profile.max_num_batched_tokens
    square = min(c["f"], c["x"] / 2) if chunked else c["f"]
    decode = (fixed + c["v"]) * decode_share + by_token + c["d"] * tokens + c["e"]
    prefill = (fixed + c["u"]) * prefill_share + by_token * tokens + square * tokens**2
    return decode / 1e3, prefill / 1e3


def _last_step_s(portions: _Portions, profile: StepProfile, chunked: bool, prefill_s: np.ndarray) -> np.ndarray:
    """[K] least time of the last step of each portion, which work in it is half of away from the portion's end."""
    c = profile.coefficients_ms
    any_prefill = (max(c["W"], c["h"] + c["g"]) + c["u"]) / 1e3
    first = np.full_like(prefill_s, any_prefill) if chunked else prefill_s
    return np.where(portions.is_first, first, np.minimum(_decode_s(portions, profile), any_prefill))


def _sum_after(values: np.ndarray, portions: _Portions) -> np.ndarray:
    """[K] sum of the values of the request's later portions."""
    totals = np.cumsum(values)
    ends = totals[portions.starts + portions.count - 1]
    return np.repeat(ends, portions.count) - totals


def _sum_first(values: np.ndarray, portions: _Portions, count: np.ndarray) -> np.ndarray:
    """[N] sum of the values of the request's first `count` portions."""
    totals = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray(totals[portions.starts + count] - totals[portions.starts])
