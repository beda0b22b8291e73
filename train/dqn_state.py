"""Between two updates of Double DQN, and what is told of one.

Axis letters: E lanes of a group, C rows of a memory.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax
from flax import struct

from jaxroute.train.dqn_play import Explorers, Transition
from jaxroute.train.normalise import RunningScales
from jaxroute.train.state import Params


class DqnState(struct.PyTreeNode):
    """A run between two updates.

    Attributes:
      policy: weights of the Q network.
      target: those of the target network.
      optimiser: optax state.
      scales: of the features.
      groups: lanes of each group of fleets.
      memories: of each group, [E, C] leaves.
      update: [] int32, updates so far.
      key: typed key of the run.
    """

    policy: Params
    target: Params
    optimiser: optax.OptState
    scales: RunningScales
    groups: tuple[Explorers, ...]
    memories: tuple[Transition, ...]
    update: jax.Array
    key: jax.Array


class DqnMetrics(NamedTuple):
    """Of one update; every field [] float32.

    Attributes:
      reward: mean reward of an interval without the mixing penalty, in `dqn.reward_unit`.
      value_loss: of the batches, mean.
      value: mean Q value of the actions in the batches, in `dqn.reward_unit`.
      gradient_norm: before it is clipped, mean.
      exploration: mean chance of a random action.
      discount: factor of an interval of the first group.
      penalty_weight: of the mixing penalty.
      hold_share: share of the decisions that hold.
      busiest: most over mean dispatches of an instance, the largest of the groups.
      decisions: share of the intervals with something to decide.
      preemptions: per lane.
    """

    reward: jax.Array
    value_loss: jax.Array
    value: jax.Array
    gradient_norm: jax.Array
    exploration: jax.Array
    discount: jax.Array
    penalty_weight: jax.Array
    hold_share: jax.Array
    busiest: jax.Array
    decisions: jax.Array
    preemptions: jax.Array
