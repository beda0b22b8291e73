"""The heuristics by name, and how a name says the order of the router queue."""

from __future__ import annotations

import dataclasses
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
from jaxroute.router_order import SHORTEST_FIRST, split_order

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
    """The heuristic of that name; one with the suffix `+spf` keeps it in its own name.

    Raises:
      InputError: there is none.
    """
    plain, _ = split_order(name)
    if plain not in HEURISTICS:
        raise InputError(
            f"unknown policy {name!r}; known: {', '.join(HEURISTICS)} (each also with {SHORTEST_FIRST} behind it), "
            f"{ASSIGNED}FILE, or all"
        )
    return dataclasses.replace(HEURISTICS[plain], name=name)  # type: ignore[type-var]


def expand_names(names: list[str]) -> list[str]:
    """The policies that a list asks for: `all` (`all+spf`) stands for every heuristic; repeated names count once.

    Raises:
      InputError: the list is empty, or holds an unknown name.
    """
    expanded = []
    for name in names:
        plain, _ = split_order(name)
        suffix = name.removeprefix(plain)
        expanded += [each + suffix for each in HEURISTICS] if plain == "all" else [name]
    if not expanded:
        raise InputError(f"no policy given; known: {', '.join(HEURISTICS)}")
    for name in expanded:
        if name.startswith(ASSIGNED):
            path = Path(name.removeprefix(ASSIGNED))
            if not path.is_file():
                raise InputError(
                    f"policy {name}: no such file; give a CSV with request_id, instance, or a decision log"
                )
        else:
            heuristic(name)
    return list(dict.fromkeys(expanded))


__all__ = [
    "ASSIGNED",
    "HEURISTICS",
    "SHORTEST_FIRST",
    "Policy",
    "PolicyState",
    "expand_names",
    "heuristic",
    "split_order",
]
