"""The replay memory: a ring in the order of time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.train import replay

LANES, ROWS, BLOCK = 3, 6, 2
LANE = jnp.arange(LANES, dtype=jnp.int32)


def filled(blocks: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """A memory with so many blocks written; row t of lane e is t + 1000 e; and the number of its rows."""
    row = {"number": jnp.zeros(LANES, jnp.int32), "pair": jnp.zeros((LANES, 2))}
    memory = replay.empty(row, ROWS)
    write = jax.jit(replay.written)
    for block in range(blocks):
        times = jnp.arange(block * BLOCK, (block + 1) * BLOCK, dtype=jnp.int32)
        number = times[None] + 1000 * LANE[:, None]
        pair = jnp.stack([number, -number], axis=-1).astype(jnp.float32)
        memory = write(memory, {"number": number, "pair": pair}, jnp.int32(block * BLOCK))
    return memory, jnp.int32(blocks * BLOCK)


def test_the_oldest_rows_make_room_when_the_ring_is_full() -> None:
    memory, _ = filled(2)
    assert memory["number"][0].tolist() == [0, 1, 2, 3, 0, 0]
    memory, _ = filled(3)
    assert memory["number"][0].tolist() == [0, 1, 2, 3, 4, 5]
    memory, _ = filled(4)
    assert memory["number"][0].tolist() == [6, 7, 2, 3, 4, 5]
    memory, _ = filled(8)
    assert memory["number"][1].tolist() == [1012, 1013, 1014, 1015, 1010, 1011]
    assert memory["pair"][1, :, 1].tolist() == [-1012, -1013, -1014, -1015, -1010, -1011]


@pytest.mark.parametrize("blocks", [2, 3, 4, 5, 9])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_windows_are_consecutive_in_time_wherever_the_ring_begins(blocks: int, length: int) -> None:
    memory, count = filled(blocks)
    at = replay.windows(jax.random.key(blocks), LANE, count, rows=ROWS, samples=200, length=length)
    assert at.shape == (LANES, 200, length)
    numbers = np.asarray(replay.taken(memory, at)["number"]) - 1000 * np.arange(LANES)[:, None, None]
    assert (np.diff(numbers, axis=-1) == 1).all()
    oldest = max(0, blocks * BLOCK - ROWS)
    # Every window that is held, and no other.
    assert set(numbers[..., 0].ravel()) == set(range(oldest, blocks * BLOCK - length + 1))


def test_what_a_lane_samples_depends_on_its_number_alone() -> None:
    _, count = filled(5)
    sample = {"rows": ROWS, "samples": 20, "length": 2}
    at = replay.windows(jax.random.key(1), LANE, count, **sample)
    alone = replay.windows(jax.random.key(1), LANE[2:], count, **sample)
    assert at[2:].tolist() == alone.tolist()
    assert at[0].tolist() != at[1].tolist()


def test_rows_keep_all_their_axes() -> None:
    memory, _ = filled(3)
    at = jnp.asarray([[[0, 1], [2, 3]]] * LANES, jnp.int32)
    assert replay.taken(memory, at)["pair"].shape == (LANES, 2, 2, 2)
    assert replay.taken(memory, at[..., 0])["pair"][2].tolist() == [[2000, -2000], [2002, -2002]]
