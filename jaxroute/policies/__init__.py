"""Routing policies: one protocol, the heuristics, replay of given decisions, and the learned network.

The names below are imported when they are first asked for: the NumPy runner beside them starts without jax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxroute.policies.catalogue import ASSIGNED, HEURISTICS, SHORTEST_FIRST, expand_names, heuristic, split_order
    from jaxroute.policies.protocol import Policy, PolicyState
else:
    # Hidden from type checkers, who would take every name for one that it knows.
    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("jaxroute.policies.catalogue"), name)


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
