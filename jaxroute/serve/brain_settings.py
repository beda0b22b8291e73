"""How the brain is to route: which policy, in which order of the queue, within which limits."""

from __future__ import annotations

import dataclasses

from jaxroute.errors import InputError
from jaxroute.policies.folder import DEFAULT, DEFAULT_FOLDER, find_policy, read_policy
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.router_order import DEFAULT_AGEING, split_order
from jaxroute.serve.heuristics import HEURISTICS
from jaxroute.serve.policy_choice import RANGE_LIMIT, STALE_AFTER_S
from jaxroute.serve.router_queue import Order


@dataclasses.dataclass(frozen=True)
class BrainSettings:
    """How requests are routed.

    Attributes:
      policy: `default`, a policy folder, a training run, or a heuristic (see `serve.heuristics`); `+spf` behind it
        puts the router queue in shortest-predicted order.
      shadow: name of a heuristic that decides in the policy's place, in its own order (`+spf`), while the policy's
        choices are recorded; None to follow the policy.
      ageing: of the shortest-predicted order; None for the policy's own.
      spf_edges: likewise.
      max_queue: requests that may wait at the router.
      max_wait_s: seconds that one may wait there.
      stale_after_s: age of a server's metrics beyond which the heuristic decides.
      range_limit: standard deviations of a feature from its mean in training beyond which the heuristic decides.
      shared: whether other routers send to the same servers: the policy is shown what they have there as well, as far
        as the servers' metrics tell.
    """

    policy: str = DEFAULT
    shadow: str | None = None
    ageing: float | None = None
    spf_edges: tuple[int, ...] | None = None
    max_queue: int = 1000
    max_wait_s: float = 60.0
    stale_after_s: float = STALE_AFTER_S
    range_limit: float = RANGE_LIMIT
    shared: bool = False

    def __post_init__(self) -> None:
        if self.max_queue < 1:
            raise InputError(f"max_queue is {self.max_queue}, must be at least 1 request")
        for name in ("max_wait_s", "stale_after_s", "range_limit"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, must be above 0")
        if self.shadow is not None and split_order(self.shadow)[0] not in HEURISTICS:
            raise InputError(f"shadow: unknown heuristic {self.shadow!r}; known: {', '.join(HEURISTICS)}")


def load_policy(name: str) -> PolicyFile:
    """The policy of a folder or of a training run, or the shipped one (`default`).

    Raises:
      InputError: there is none, or it is damaged.
    """
    if name == DEFAULT:
        return read_policy(DEFAULT_FOLDER)
    try:
        return read_policy(find_policy(name))
    except InputError as error:
        known = f"known: {DEFAULT}, {', '.join(HEURISTICS)}, a policy folder or a training run"
        raise InputError(f"{error} ({known})") from error


def order_of(settings: BrainSettings, policy: PolicyFile | None) -> Order:
    """That of the shadow heuristic, or else the policy's, unless `+spf` or the settings say otherwise."""
    forced = split_order(settings.shadow or settings.policy)[1]
    trained = policy if policy is not None and settings.shadow is None else None
    name = trained.router_order if trained and forced == "fcfs" else forced
    # Of a policy that was trained on another order, they say nothing.
    has_own = trained is not None and trained.router_order == "shortest-predicted"
    ageing = trained.ageing if trained and has_own else DEFAULT_AGEING
    edges = trained.spf_edges if trained and has_own else ()
    return Order(
        name,
        ageing if settings.ageing is None else settings.ageing,
        edges if settings.spf_edges is None else settings.spf_edges,
    )
