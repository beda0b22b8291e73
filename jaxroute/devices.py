"""The devices that a batch of lanes is spread over, as one mesh axis."""

from __future__ import annotations

import jax

AXIS = "lanes"
"""Name of that axis."""


def lane_mesh(devices: int) -> jax.sharding.Mesh:
    """The first `devices` devices on one axis, `AXIS`."""
    auto = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), (AXIS,), axis_types=auto, devices=jax.devices()[:devices])


def lane_sharding(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    """Splits a leading [E] evenly over the mesh."""
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
