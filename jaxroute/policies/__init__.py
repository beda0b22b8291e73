"""Routing policies: one protocol, the heuristics, and replay of given decisions."""

from __future__ import annotations

from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.policies.count_based import JoinShortestQueue, PowerOfTwo, Random, RoundRobin, VllmDataParallel
from jaxroute.policies.kv_based import GatedCentralQueue, LeastKv
from jaxroute.policies.protocol import Policy, PolicyState
from jaxroute.policies.token_based import (
    DecodeBalancer,
    DedicatedSmallLarge,
    FewestOutstandingTokens,
    LMetric,
    MaxCapacity,
    MinMin,
)

HEURISTICS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Random(),
        RoundRobin(),
        JoinShortestQueue(),
        FewestOutstandingTokens(),
        PowerOfTwo(),
        LeastKv(),
        VllmDataParallel(),
        LMetric(),
        MinMin(),
        MaxCapacity(),
        DedicatedSmallLarge(),
        DecodeBalancer(),
        GatedCentralQueue(),
    )
}
"""All heuristics by name."""

ASSIGNED = "assigned:"
"""Prefix of a policy that replays decisions from a file."""


def heuristic(name: str) -> Policy:
    """The heuristic of that name.

    Raises:
      InputError: there is none.
    """
    if name not in HEURISTICS:
        raise InputError(f"unknown policy {name!r}; known: {', '.join(HEURISTICS)}, {ASSIGNED}FILE.csv, or all")
    return HEURISTICS[name]


def expand_names(names: list[str]) -> list[str]:
    """The policies that a list asks for: `all` stands for every heuristic, repeated names count once.

    Raises:
      InputError: the list is empty, or holds an unknown name.
    """
    expanded = [each for name in names for each in (HEURISTICS if name == "all" else [name])]
    if not expanded:
        raise InputError(f"no policy given; known: {', '.join(HEURISTICS)}")
    for name in expanded:
        if name.startswith(ASSIGNED):
            path = Path(name.removeprefix(ASSIGNED))
            if not path.is_file():
                raise InputError(f"policy {name}: no such file; give a CSV with the columns request_id, instance")
        else:
            heuristic(name)
    return list(dict.fromkeys(expanded))


__all__ = ["ASSIGNED", "HEURISTICS", "Policy", "PolicyState", "expand_names", "heuristic"]
