"""Counts of an instance's requests by predicted bucket, kept up with every event; no-ops where they are off (None)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxroute.cluster.state import BucketCounts
from jaxroute.types import Workload


def empty_counts(buckets: int) -> BucketCounts | None:
    """No requests; None for 0 buckets."""
    if buckets == 0:
        return None
    zeros = jnp.zeros(buckets, jnp.int32)
    return BucketCounts(awaiting=zeros, streaming=zeros, first=zeros)


def dispatched(
    counts: BucketCounts | None, workload: Workload, request: jax.Array, wanted: jax.Array
) -> BucketCounts | None:
    """A request has come in."""
    if counts is None:
        return None
    return counts.replace(awaiting=_add(counts.awaiting, workload, request, wanted, 1))


def yields_first(
    counts: BucketCounts | None, workload: Workload, request: jax.Array, wanted: jax.Array
) -> BucketCounts | None:
    """The step that is being scheduled will yield the request's first token."""
    if counts is None:
        return None
    return counts.replace(first=_add(counts.first, workload, request, wanted, 1))


def step_ended(counts: BucketCounts | None, ends: jax.Array) -> BucketCounts | None:
    """The step's first tokens are out."""
    if counts is None:
        return None
    first = jnp.where(ends, counts.first, 0)
    return BucketCounts(
        awaiting=counts.awaiting - first, streaming=counts.streaming + first, first=counts.first - first
    )


def finished(
    counts: BucketCounts | None, workload: Workload, request: jax.Array, wanted: jax.Array
) -> BucketCounts | None:
    """A request has yielded its last token."""
    if counts is None:
        return None
    return counts.replace(streaming=_add(counts.streaming, workload, request, wanted, -1))


def _add(bins: jax.Array, workload: Workload, request: jax.Array, wanted: jax.Array, amount: int) -> jax.Array:
    bucket = jnp.where(wanted, workload.predicted_bucket[request], bins.shape[0])
    return bins.at[bucket].add(amount, mode="drop")
