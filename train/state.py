"""Everything that a training run carries from one update to the next."""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax import struct

from jaxroute.env_types import EnvState
from jaxroute.train.normalise import RunningScales

Params = Any
"""A pytree of a network's weights."""


class Lanes(struct.PyTreeNode):
    """One group of lanes between two rollouts; every leaf has a leading [E].

    Attributes:
      number: [E] int32, of the lane among all lanes of the run; its random numbers depend on it, so that they do not
        depend on how lanes are spread over devices.
      env: the lane's fleet.
      done: [E] bool, whether its episode has ended; the next rollout begins another one.
      return_scale: [E] float32, root of the mean square of the lane's discounted returns, a running mean.
    """

    number: jax.Array
    env: EnvState
    done: jax.Array
    return_scale: jax.Array


class TrainState(struct.PyTreeNode):
    """A run between two updates.

    Attributes:
      policy: the scorer's weights.
      critic: the critic's weights.
      policy_optimiser, critic_optimiser: optax states.
      scales: of the policy's features.
      groups: lanes of each group of fleets.
      update: [] int32, updates so far.
      key: typed key of the run.
    """

    policy: Params
    critic: Params
    policy_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    scales: RunningScales
    groups: tuple[Lanes, ...]
    update: jax.Array
    key: jax.Array
