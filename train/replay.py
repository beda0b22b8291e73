"""A replay memory on the device: a ring of the last transitions of every lane, in the order of time.

Axis letters: E lanes, C rows of a lane's ring, T rows that are written at once, S samples of a lane.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp

Rows = TypeVar("Rows")
"""A pytree of arrays with leading axes [E, rows]."""


def empty(row: Rows, rows: int) -> Rows:
    """A memory that holds nothing yet.

    Args:
      row: shapes and types of one row of every lane, [E, ...] leaves.
      rows: C.

    Returns:
      [E, C, ...] leaves.
    """
    return jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], rows, *leaf.shape[1:]), leaf.dtype), row)


def written(memory: Rows, block: Rows, count: jax.Array) -> Rows:
    """The memory with the next rows, in place of the oldest ones.

    Args:
      memory: [E, C, ...] leaves.
      block: [E, T, ...] leaves; C is a multiple of T.
      count: [] int32, rows of a lane that were written before, a multiple of T.
    """

    def one(ring: jax.Array, new: jax.Array) -> jax.Array:
        start = jnp.mod(count, ring.shape[1])
        return jax.lax.dynamic_update_slice_in_dim(ring, new, start, axis=1)

    return jax.tree.map(one, memory, block)


def windows(key: jax.Array, lanes: jax.Array, count: jax.Array, *, rows: int, samples: int, length: int) -> jax.Array:
    """[E, S, length] int32, rows of random windows of consecutive transitions, none across the newest one.

    Args:
      key: typed key; each lane's is folded from it.
      lanes: [E] int32, numbers of the lanes among all of the run.
      count: [] int32, rows of a lane that were written so far, at least `length`.
      rows: C.
      samples: S.
      length: of a window.
    """
    held = jnp.minimum(count, rows)
    oldest = count - held

    def one(lane: jax.Array) -> jax.Array:
        first = jax.random.randint(jax.random.fold_in(key, lane), (samples,), 0, held - length + 1)
        return jnp.mod(oldest + first[:, None] + jnp.arange(length, dtype=jnp.int32)[None], rows)

    return jax.vmap(one)(lanes)


def taken(memory: Rows, at: jax.Array) -> Rows:
    """The rows of every lane at [E, ...] int32; [E, ..., ...] leaves."""
    return jax.tree.map(lambda leaf: jax.vmap(lambda ring, own: ring[own])(leaf, at), memory)
