"""jaxroute: request routing for LLM serving, simulated and trained in JAX."""

from __future__ import annotations

from typing import Any


def make(*args: Any, **options: Any) -> Any:
    """The gymnax environment and its parameters: see `jaxroute.make_env.make`, imported only when it is called."""
    from jaxroute.make_env import make as make_environment

    return make_environment(*args, **options)


__all__ = ["make"]
