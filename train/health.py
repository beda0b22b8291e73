"""Stops a run that has gone wrong: numbers that are not finite, or a policy that sends nearly all to one instance.

Axis letters: C updates of one call, K runs side by side.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxroute.errors import InputError
from jaxroute.train.config import TrainConfig
from jaxroute.train.report import Metrics

MOST_SHARE, NEARLY_ALL = 3.0, 0.9
"""A policy has collapsed where the busiest instance gets so many times its share, or so much of all in small fleets."""

PATIENCE = 20
"""Updates in a row for which it must."""

SENT_PER_INSTANCE = 8
"""Requests of a lane and rollout, over the instances, below which shares say nothing."""

REMEDIES = {
    "ppo": ", ppo.critic_learning_rate or ppo.max_grad_norm",
    "evolution": " or evolution.sigma",
    "dqn": ", or raise dqn.reward_unit",
}
"""What else to change where training has diverged, by stage."""


class DivergedError(InputError):
    """The run cannot go on; what was saved before stays good."""


def check_finite(stage: str, done: int, metrics: Any, weights: Any) -> None:
    """Raises where training has left the finite numbers.

    Args:
      stage: name of the stage.
      done: updates or generations after the call.
      metrics: of the call, on the host; a named tuple of arrays.
      weights: afterwards, a pytree on the host.

    Raises:
      DivergedError: names the number, and what to try.
    """
    bad = [name for name, values in metrics._asdict().items() if not np.isfinite(values).all()]
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
        bad.append("weights")
    if bad:
        raise DivergedError(
            f"training diverged: {', '.join(bad)} not finite by {stage} update {done}; lower {stage}.learning_rate"
            + REMEDIES.get(stage, "")
            + "; the last checkpoint and policy are from before"
        )


def collapsed_for(config: TrainConfig, before: np.ndarray, metrics: Metrics) -> np.ndarray:
    """For how many updates in a row each run's policy has sent nearly all to one instance; [K] int.

    Groups of which some fleets are mixed are not judged, as a slow server rightly gets little; nor are single servers.

    Args:
      config: the run's.
      before: [K] int, before the call.
      metrics: of the call, [C, K] leaves on the host.
    """
    most = max(fleets.instances for fleets in config.fleets)
    if most < 2 or any(fleets.mixed > 0 for fleets in config.fleets):
        return np.zeros_like(before)
    sent = metrics.decisions * (1 - metrics.hold_share) * config.ppo.rollout
    collapsed = (metrics.busiest > min(MOST_SHARE, NEARLY_ALL * most)) & (sent >= SENT_PER_INSTANCE * most)
    counts = before
    for each in np.asarray(collapsed):
        counts = np.where(each, counts + 1, 0)
    return counts


def check_collapse(counts: np.ndarray, first_seed: int, done: int) -> None:
    """Raises where a run has collapsed for `PATIENCE` updates.

    Raises:
      DivergedError: names the seed, and what to try.
    """
    if (counts >= PATIENCE).any():
        raise DivergedError(
            f"training collapsed: by ppo update {done} the policy of seed {first_seed + int(np.argmax(counts))} has "
            f"sent nearly all requests of a lane to one instance for {int(counts.max())} updates in a row; raise "
            "ppo.entropy, lower ppo.learning_rate, or set network.prior; the last checkpoint and policy are from before"
        )
