"""What all exchanges share."""

from __future__ import annotations

from jaxroute.epp.endpoints import Endpoints
from jaxroute.epp.request_body import Held
from jaxroute.serve.backends import Backend
from jaxroute.serve.core import Core


class Desk:
    """The core and the names of its backends.

    Attributes:
      core: what decides.
      endpoints: the backends as Envoy names them.
      held: bytes of the bodies that wait for a decision.
    """

    def __init__(self, core: Core) -> None:
        limits = core.config.limits
        self.core, self.endpoints = core, Endpoints(core.backends)
        self.held = Held(limits.body_bytes, limits.held_bytes)

    def choices(self, backend: Backend, exclude: frozenset[str]) -> list[str]:
        """The endpoint of the backend that was chosen, and those that a gateway may try where it fails.

        The others are open, want the same key, and come by their outstanding tokens, fewest first.

        Args:
          backend: that was chosen.
          exclude: names of backends that must not be tried.
        """
        core, endpoints = self.core, self.endpoints
        others = [
            (load.outstanding_tokens, load.server.name)
            for load in core.dispatcher.brain.tracker.loads
            if load.is_open and load.server.name not in exclude and load.server.name != backend.name
        ]
        names = [name for _, name in sorted(others) if core.backends[name].key == backend.key]
        return [endpoints.of(name) for name in [backend.name, *names[: core.config.limits.retries]]]
