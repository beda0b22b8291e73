"""Asks a trained policy, unless what it would see or say is not to be trusted.

Axis letters: C servers that may be chosen, F features of a server, G features of the router.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING, cast

import numpy as np

from jaxroute.observation import Observed, observe
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.policies.runner import Runner
from jaxroute.serve.fleet_view import FleetView
from jaxroute.serve.types import FallbackReason

if TYPE_CHECKING:
    from jaxroute.types import RouterView

LOG = logging.getLogger(__name__)

RANGE_LIMIT = 20.0
"""Standard deviations from the mean of the training at which a feature is out of the trained range.

The distributions have long tails: a few deviations, which an overload reaches, are well within what was trained on.
"""

STALE_AFTER_S = 3.0
"""Age of a server's metrics beyond which they are stale. The default policy was trained on ages of 0.05 to 1 s."""


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """What a policy would do.

    Attributes:
      action: index of a server, 0..C-1, or C to hold; None where it is not to be followed.
      fallback: why not.
      router_features: [G] float32, None where they were not computed.
      instance_features: [C, F] float32, likewise.
      scores: [C + 1] float32, None where there are none.
    """

    action: int | None
    fallback: FallbackReason | None = None
    router_features: np.ndarray | None = None
    instance_features: np.ndarray | None = None
    scores: np.ndarray | None = None


NO_POLICY = Choice(None)
"""Where there is none."""


class PolicyJudge:
    """A policy and the limits within which it is followed."""

    def __init__(
        self, policy: PolicyFile, *, stale_after_s: float = STALE_AFTER_S, range_limit: float = RANGE_LIMIT
    ) -> None:
        self.policy = policy
        self._stale_after_s = stale_after_s
        self._runner = Runner(policy)
        scales = policy.scales
        self._router = scales.router_mean, range_limit * scales.router_std
        self._instance = scales.instance_mean, range_limit * scales.instance_std
        self._warned: set[str] = set()

    def choose(self, view: FleetView) -> Choice:
        """What the policy would do.

        Args:
          view: of the servers that may be chosen, at least one. A policy may never have seen a full one.
        """
        age = view.signal_age_s.max()
        # Not within `age > limit`: an age that is no number must not pass.
        if not age <= self._stale_after_s:
            return Choice(None, "missing-signal" if age == np.inf else "stale-signal")
        router = instances = None
        # Whatever a policy does wrong, a router must go on.
        try:
            router, instances, mask = observe(cast("RouterView", view), self.policy.observation, np)
            reason = self._distrusts(router, instances)
            if reason is not None:
                return Choice(None, reason, router, instances)
            scores = self._runner.logits(Observed(router, instances, mask))
            if not np.isfinite(scores).all():
                return Choice(None, "non-finite", router, instances, scores)
            return Choice(int(scores.argmax()), None, router, instances, scores)
        except Exception as error:
            self._warn(f"the policy failed with {type(error).__name__}: {error}")
            return Choice(None, "policy-error", router, instances)

    def _distrusts(self, router: np.ndarray, instances: np.ndarray) -> FallbackReason | None:
        fits_router = np.abs(router - self._router[0]) <= self._router[1]
        fits_instance = np.abs(instances - self._instance[0]) <= self._instance[1]
        if fits_router.all() and fits_instance.all():
            return None
        if not (np.isfinite(router).all() and np.isfinite(instances).all()):
            return "non-finite"
        names = [name for name, fits in zip(self.policy.router_features, fits_router, strict=True) if not fits]
        by_column = fits_instance.all(axis=0)
        names += [name for name, fits in zip(self.policy.instance_features, by_column, strict=True) if not fits]
        for name in names:
            self._warn(f"out of the range that the policy was trained on: {name}")
        return "out-of-range"

    def _warn(self, what: str) -> None:
        """Each failure once, or the log would fill up; a counter has them all."""
        if what not in self._warned and len(self._warned) < 100:
            self._warned.add(what)
            LOG.warning("%s; the heuristic decides", what)
