"""The heuristics that can decide in a proxy, in NumPy: the same rules as those of their names in `policies`."""

from __future__ import annotations

from collections.abc import Callable

from jaxroute.serve.fleet_view import FleetView


def fewest_outstanding_tokens(view: FleetView) -> int:
    """Prompts without a first token and predicted output tokens left, the fewest; the first of equals."""
    return int((view.awaiting_prompt_tokens + view.predicted_tokens_left).argmin())


def round_robin(view: FleetView) -> int:
    """One server after the other."""
    return view.dispatched % len(view.full)


HEURISTICS: dict[str, Callable[[FleetView], int]] = {
    "fewest-outstanding-tokens": fewest_outstanding_tokens,
    "round-robin": round_robin,
}
"""By name; each takes the view of the servers that may be chosen, at least one, and gives the index of one."""

FALLBACK = "fewest-outstanding-tokens"
"""What decides where a policy cannot."""
