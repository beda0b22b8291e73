"""The devices that a batch of lanes is spread over, as one mesh axis; those of other processes among them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "lanes"
"""Name of that axis."""


def lane_mesh(devices: int) -> jax.sharding.Mesh:
    """The first `devices` devices on one axis, `AXIS`."""
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), (AXIS,), axis_types=auto, devices=jax.devices()[:devices])


def lane_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Splits a leading [E] evenly over the mesh."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


def whole_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Everything on every device of the mesh."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def placed(tree: Any, shardings: Any) -> Any:
    """Arrays and typed keys on the devices of a mesh, of which each process has some.

    Args:
      tree: arrays on the host or on a device; every process hands in the same, whole.
      shardings: one for all leaves, or a tree of them like `tree`.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: _placed_leaf(leaf, shardings), tree)
    return jax.tree.map(_placed_leaf, tree, shardings)


def on_host(tree: Any) -> Any:
    """The whole arrays on the host of every process, wherever their parts are; all processes have to ask for them."""
    return jax.device_get(jax.tree.map(_whole_leaf, tree))


def _placed_leaf(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    # `device_put` would send every leaf round all processes to compare it.
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_placed_leaf(jax.random.key_data(leaf), sharding))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _whole_leaf(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf
