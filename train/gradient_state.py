"""Between two updates of learning by gradient, and what is told of one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from flax import struct

from jaxroute.train.gradient_window import RelaxedLanes
from jaxroute.train.normalise import RunningScales
from jaxroute.train.state import Params


class GradientState(struct.PyTreeNode):
    """A run between two updates; the attributes of `TrainState`, with relaxed lanes."""

    policy: Params
    critic: Params
    policy_optimiser: optax.OptState
    critic_optimiser: optax.OptState
    scales: RunningScales
    groups: tuple[RelaxedLanes, ...]
    update: jax.Array
    key: jax.Array


class GradientMetrics(NamedTuple):
    """Of one update; every field [] float32.

    Attributes:
      reward: mean reward of an interval in units of its lane's scale.
      entropy: of the choices, mean.
      value_loss: of the critic, in its last pass.
      explained: share of the variance of the targets that the critic explains.
      busiest: most over mean dispatches of an instance, the largest of the groups.
      decisions: share of the intervals with something to decide.
      gradient_norm: of the policy's gradient before it is clipped.
      no_row: share of the intervals in which a request waited for a free row.
    """

    reward: jax.Array
    entropy: jax.Array
    value_loss: jax.Array
    explained: jax.Array
    busiest: jax.Array
    decisions: jax.Array
    gradient_norm: jax.Array
    no_row: jax.Array
