"""What the proxy and the brain tell each other."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from jaxroute.profiles import StepProfile

HOLD = "hold"
"""In place of a backend's name, where a policy would have the request wait."""

FallbackReason = Literal["policy-error", "non-finite", "out-of-range", "stale-signal", "missing-signal"]
"""Why the heuristic decided instead of the policy: it raised; a feature or a logit of it is not finite; a feature is
outside of what it was trained on; a backend's metrics are too old; a backend's metrics were never read."""

RefusalReason = Literal["queue-full", "wait-limit", "no-backend", "closing", "bodies"]
"""Why a request is not placed: too many wait (HTTP 429); it waited too long (429); no backend may take it (503); the
router is shutting down (503); the bodies under way are too large together (503)."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A backend as the brain knows it.

    Attributes:
      name: unique.
      profile: how long its steps take and what fits into it.
      max_in_flight: requests at the most that the router has there at once; None for no limit.
    """

    name: str
    profile: StepProfile
    max_in_flight: int | None = None


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What one reading of a server's `/metrics` says.

    Attributes:
      running, waiting: requests.
      kv_usage: share of the KV cache in use, 0 to 1.
      kv_tokens: tokens that the KV cache holds; None where the server does not say.
    """

    running: int
    waiting: int
    kv_usage: float
    kv_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Incoming:
    """A request that is to be placed.

    Attributes:
      id: unique among the requests at the router and in flight; a retry after `failed` may use the same one again.
      prompt_tokens: of its prompt, counted or estimated.
      predicted_tokens: output tokens that stand for its predicted bucket (`Estimate.tokens`).
      predicted_bucket: see `Estimate.bucket`.
      predicted_upper: most output tokens of the bucket (`Estimate.upper`).
      task: its task, if known; goes to the decision log only.
      streamed: whether its tokens will be seen one after the other; if not, its progress is estimated.
      arrival_s: when it came in, by the dispatcher's clock; None for now. A retry keeps that of the first try.
    """

    id: str
    prompt_tokens: int
    predicted_tokens: int
    predicted_bucket: int = 0
    predicted_upper: int = 0
    task: str | None = None
    streamed: bool = True
    arrival_s: float | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """How a request came to its backend.

    Attributes:
      decided_by: `policy`, or the name of the heuristic.
      fallback: why the heuristic decided instead of the policy, or in shadow mode, why the policy had no choice.
      shadow: the backend that the policy would have chosen, or `HOLD`; None where it was not asked or had no choice.
      names: the backends that were to choose from, [C].
      router_features, instance_features: what the policy saw, [G] and [C, F] float32; None where it was not asked.
      scores: the policy's logits, [C + 1] float32, the last one hold; None where it gave none.
      signal_age_s: age of the oldest metrics among the backends to choose from, seconds; inf where one has none.
      decision_s: seconds that the decision took, features included.
    """

    decided_by: str
    fallback: FallbackReason | None = None
    shadow: str | None = None
    names: tuple[str, ...] = ()
    router_features: np.ndarray | None = None
    instance_features: np.ndarray | None = None
    scores: np.ndarray | None = None
    signal_age_s: float = math.inf
    decision_s: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """Where a request goes.

    Attributes:
      request: the request; its `arrival_s` is set.
      backend: name of the server; it counts as dispatched there from now on.
      dispatch_s: when it was placed, by the dispatcher's clock.
      decision: how.
    """

    request: Incoming
    backend: str
    dispatch_s: float
    decision: Decision

    @property
    def router_wait_s(self) -> float:
        """Seconds that the request waited at the router."""
        return max(0.0, self.dispatch_s - (self.request.arrival_s or 0.0))


class Refused(Exception):  # noqa: N818 - an outcome, which `place` raises
    """The request is not placed.

    Attributes:
      reason: why.
      retry_after_s: seconds after which another try makes sense.
    """

    def __init__(self, reason: RefusalReason, retry_after_s: float) -> None:
        super().__init__(f"{reason}; retry after {retry_after_s:.0f} s")
        self.reason, self.retry_after_s = reason, retry_after_s


@dataclasses.dataclass(frozen=True)
class BackendStatus:
    """One backend as the brain sees it now, for the router's own metrics.

    Attributes:
      name: of the server.
      is_open: whether it may be chosen.
      in_flight: requests.
      in_flight_tokens: their prompt tokens and the output tokens seen so far.
      outstanding_tokens: prompt tokens without a first token, and predicted output tokens left.
      kv_tokens: tokens that its KV cache holds.
      signal_age_s: seconds since its metrics were read; inf where they never were.
    """

    name: str
    is_open: bool
    in_flight: int
    in_flight_tokens: int
    outstanding_tokens: int
    kv_tokens: int
    signal_age_s: float
