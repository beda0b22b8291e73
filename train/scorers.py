"""The network that a configuration asks for."""

from __future__ import annotations

from jaxroute.env import ClusterRouting
from jaxroute.observation import count_columns
from jaxroute.policies.network import SCORERS, Scorer
from jaxroute.train.config import NetworkConfig


def make_network(config: NetworkConfig, env: ClusterRouting) -> Scorer:
    """The policy's network for observations of an environment (of any group, they are alike)."""
    columns = count_columns(config.observation, env.config.buckets)
    return SCORERS[config.form](config.hidden, config.holds, columns)
