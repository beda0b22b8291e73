"""Evolution strategies on whole episodes: the other way to train the network, and a cross-check of what is reachable.

A decision's effect lasts a minute and is a hundredth of the noise of its episode. Perturbing the weights instead of the
actions keeps a change of behaviour for a whole episode, and every perturbed policy plays the same requests (common
random numbers), so that the ranks of their costs say which changes help (Salimans et al., 2017).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.episode import Greedy, Outcome, play
from jaxroute.train.state import Params

AXIS = "members"


@dataclasses.dataclass(frozen=True)
class EvolutionConfig:
    """Evolution strategies.

    Attributes:
      generations: of the whole run.
      pairs: mirrored pairs of perturbed policies in a generation.
      sigma: standard deviation of a perturbation.
      learning_rate: of Adam on the estimated gradient; it falls linearly to a tenth.
      weight_decay: pull of the weights to 0, per generation.
      tail_weight: what a relative excess of the p99 E2E latency and of the p99 TTFT over the reference's costs,
        in relative mean E2E latency.
    """

    generations: int = 100
    pairs: int = 16
    sigma: float = 0.1
    learning_rate: float = 0.03
    weight_decay: float = 0.0
    tail_weight: float = 2.0


class Reference(NamedTuple):
    """Outcomes of the reference policy in every lane and workload; [E, M] leaves of an `Outcome`."""

    outcome: Outcome


class EvolutionState(struct.PyTreeNode):
    """Attributes: weights: [D] float32; optimiser: optax state; generation: [] int32; key: typed key."""

    weights: jax.Array
    optimiser: optax.OptState
    generation: jax.Array
    key: jax.Array


def cost(outcome: Outcome, reference: Outcome, tail_weight: float) -> jax.Array:
    """What is minimised, relative to a reference on the same requests: 1 is as good as it; [...] float32.

    The mean E2E latency, and what the tails are longer than the reference's; a run that did not end costs most.
    """
    mean = outcome.e2e_mean / reference.e2e_mean
    e2e_tail = jnp.maximum(outcome.e2e_p99 / reference.e2e_p99 - 1, 0)
    # Short waits are no harm: a tenth of a second of TTFT is nobody's loss.
    ttft_tail = jnp.maximum((outcome.ttft_p99 - reference.ttft_p99) / (reference.ttft_p99 + 1.0), 0)
    return mean + tail_weight * (e2e_tail + ttft_tail) + 1e3 * (1 - outcome.complete)


def centred_ranks(costs: jax.Array) -> jax.Array:
    """Ranks along the first axis, scaled to [-0.5, 0.5]; equal costs get equal ranks. Shape as `costs`, [P, ...]."""
    below = jnp.sum(costs[None] < costs[:, None], axis=1, dtype=jnp.float32)
    equal = jnp.sum(costs[None] == costs[:, None], axis=1, dtype=jnp.float32)
    return (below + (equal - 1) / 2) / (costs.shape[0] - 1) - 0.5
