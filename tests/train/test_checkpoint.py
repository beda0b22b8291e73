from __future__ import annotations

from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxroute.errors import InputError
from jaxroute.train.checkpoint import Checkpoints, unkeyed


def tree_of(number: int) -> dict[str, Any]:
    weights = {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3) / 7 + number, "b": jnp.asarray([True, False])}
    return {
        "weights": weights,
        "optimiser": optax.adam(1e-3).init(weights["a"]),
        "key": jax.random.key(number),
        "keys": jax.random.split(jax.random.key(number), 2),
    }


def like() -> dict[str, Any]:
    return jax.eval_shape(lambda: tree_of(0))


def test_arrays_keys_and_facts_come_back_exactly_in_another_process_view(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path)
    first.save(3, tree_of(3), {"stage": "ppo", "score": 0.1 + 0.2, "none": None, "nan": float("nan")})
    first.close()
    again = Checkpoints(tmp_path)
    found = again.restore(like())
    chex.assert_trees_all_equal(unkeyed(found), unkeyed(tree_of(3)))
    assert jax.tree.structure(found) == jax.tree.structure(tree_of(3))
    np.testing.assert_array_equal(jax.random.bits(found["key"]), jax.random.bits(jax.random.key(3)))
    assert again.facts() == {"stage": "ppo", "score": 0.1 + 0.2, "none": None, "nan": None}
    again.close()


def test_the_last_two_stay_and_the_last_is_restored(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 4, 9):
        checkpoints.save(step, tree_of(step), {"update": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "9"]
    assert checkpoints.facts() == {"update": 9}
    chex.assert_trees_all_equal(checkpoints.restore(like())["weights"], tree_of(9)["weights"])
    checkpoints.close()


def test_without_any_there_are_no_facts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "none yet")
    assert checkpoints.facts() is None
    checkpoints.close()


def test_a_checkpoint_of_another_configuration_is_refused_in_one_line(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree_of(1), {})
    other = {**like(), "weights": {"a": jax.ShapeDtypeStruct((5, 3), jnp.float32)}}
    with pytest.raises(InputError, match=r"does not fit the run's config.toml") as caught:
        checkpoints.restore(other)
    assert "\n" not in str(caught.value)
    checkpoints.close()
