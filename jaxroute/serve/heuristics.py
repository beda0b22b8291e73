"""The heuristics that can decide in a proxy: the same rules as those of their names in `policies`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxroute.serve.server_load import ServerLoad


def fewest_outstanding_tokens(loads: Sequence[ServerLoad], dispatched: int) -> int:
    """Prompts without a first token and predicted output tokens left, the fewest; the first of equals."""
    outstanding = [load.outstanding_tokens for load in loads]
    return outstanding.index(min(outstanding))


def round_robin(loads: Sequence[ServerLoad], dispatched: int) -> int:
    """One server after the other."""
    return dispatched % len(loads)


HEURISTICS: dict[str, Callable[[Sequence[ServerLoad], int], int]] = {
    "fewest-outstanding-tokens": fewest_outstanding_tokens,
    "round-robin": round_robin,
}
"""By name; each takes the servers that may be chosen, at least one, and the requests dispatched so far, and gives the
index of a server."""

FALLBACK = "fewest-outstanding-tokens"
"""What decides where a policy cannot."""
