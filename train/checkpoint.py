"""Checkpoints of a run: everything that it needs to go on exactly as if it had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from jaxroute.errors import InputError
from jaxroute.output import plain_json

KEPT = 2


class Saved(NamedTuple):
    """Attributes: tree: arrays on the host, keys as their data; host: what JSON holds."""

    tree: Any
    host: dict[str, Any]


class Checkpoints:
    """The folder of a run's last checkpoints; each is there whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=KEPT, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def save(self, step: int, tree: Any, host: dict[str, Any]) -> None:
        """Saves a checkpoint; the older ones but one are removed.

        Args:
          step: number of the checkpoint, above those before.
          tree: arrays and typed keys.
          host: facts that JSON can hold.
        """
        if step in self._manager.all_steps():
            return
        state = ocp.args.StandardSave(unkeyed(tree))
        self._manager.save(step, args=ocp.args.Composite(state=state, host=ocp.args.JsonSave(plain_json(host))))

    def facts(self) -> dict[str, Any] | None:
        """The facts of the last checkpoint; None without any."""
        if (step := self._manager.latest_step()) is None:
            return None
        return dict(self._manager.restore(step, args=ocp.args.Composite(host=ocp.args.JsonRestore())).host)

    def restore(self, like: Any) -> Any:
        """The arrays of the last checkpoint, on the host.

        Args:
          like: of the same structure, shapes and types (`jax.eval_shape`).

        Raises:
          InputError: the checkpoint is of something else.
        """
        step = self._manager.latest_step()
        plain = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(unkeyed, like))
        try:
            tree = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(plain))).state
            jax.tree.map(_check_fits, tree, plain)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self._folder}: the last checkpoint does not fit the run's config.toml ({reason}); start a new run"
            ) from error
        return rekeyed(tree, like)

    def close(self) -> None:
        """Lets the folder go."""
        self._manager.close()


def unkeyed(tree: Any) -> Any:
    """The tree with the data of its typed keys in their place."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def rekeyed(tree: Any, like: Any) -> Any:
    """The tree with typed keys where `like` has them."""
    return jax.tree.map(lambda leaf, model: jax.random.wrap_key_data(leaf) if _is_key(model) else leaf, tree, like)


def _check_fits(found: np.ndarray, wanted: np.ndarray) -> None:
    """Orbax gives arrays as they were saved, whatever was asked for."""
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        raise ValueError(f"it has {found.dtype}{list(found.shape)} for {wanted.dtype}{list(wanted.shape)}")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
