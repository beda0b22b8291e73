"""The environment's parameters and state."""

from __future__ import annotations

import jax
from flax import struct

from jaxroute.cluster.state import ClusterState
from jaxroute.types import ClusterParams, Workload


class EnvParams(struct.PyTreeNode):
    """What an episode is drawn from; every leaf may be vmapped.

    Attributes:
      cluster: the fleet.
      workloads: Workload, [M] leaves: the bank of which every reset picks one.
      max_steps_in_episode: [] int32, router intervals after which an episode is truncated.
      scrape_periods: [2] int32, least and most router intervals between two scrapes; every reset draws one.
      penalty_weight: [] float32, w_k of the mixing penalty in the paper's reward.
    """

    cluster: ClusterParams
    workloads: Workload
    max_steps_in_episode: jax.Array
    scrape_periods: jax.Array
    penalty_weight: jax.Array


class EnvState(struct.PyTreeNode):
    """Attributes: time: [] int32, intervals so far; index: [] int32, workload; scrape_period: [] int32; cluster."""

    time: jax.Array
    index: jax.Array
    scrape_period: jax.Array
    cluster: ClusterState
