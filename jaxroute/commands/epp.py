"""`jaxroute epp`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxroute.commands.serve import Serve
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.serve.config import ServeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epp(Serve):
    """Pick endpoints for Envoy: requests pass through Envoy or a Kubernetes gateway, which asks where each goes.

    Speaks Envoy's ext_proc (gRPC), with header and metadata of the Gateway API Inference Extension, and gRPC health.
    Configuration, policies, metrics, administration and signals are those of `jaxroute serve`; `listen` is the gRPC
    listener. --print-envoy-config writes a whole configuration of Envoy for the backends that are given.
    """

    port: int | None = None
    """Port of gRPC, 9002 by default; 0 for one that the system chooses."""
    admin_port: int | None = None
    """Port of metrics and administration, 9090 by default."""
    print_envoy_config: bool = False
    """Print the configuration of an Envoy in front of the backends, and end."""
    envoy_port: int = 8080
    """Port on which that Envoy listens, on 127.0.0.1."""
    fail_open: Annotated[bool, tyro.conf.arg(help_behavior_hint="default: --fail-open")] = True
    """Whether that Envoy routes by itself where the picker does not answer; otherwise it answers 503."""
    full_duplex: bool = False
    """Whether bodies go through the picker, as gateways of Kubernetes send them; with --no-fail-open."""

    token_events: Annotated[bool, tyro.conf.arg(help_behavior_hint="default: --token-events")] = True
    """Whether the picker sees every piece of an answer and knows how far each stream is; otherwise it estimates that,
    and has three messages a request to answer instead of one more for each token."""

    def run(self) -> None:
        """Runs it."""
        try:
            from jaxroute.epp.picker import Picker
            from jaxroute.serve.run import run
        except ModuleNotFoundError as error:
            raise InputError(f"jaxroute epp needs {error.name}: pip install 'jaxroute[epp]'") from error
        if self.print_envoy_config:
            self._print()
            return
        run(self.read, Picker)

    def read(self) -> ServeConfig:
        """The configuration of file and flags as it is now; the ports are the picker's, where nothing says others.

        Raises:
          InputError: something of it is wrong.
        """
        from jaxroute.serve.config import Listener, ServeConfig

        config = super().read()
        usual = {field.name: field.default for field in dataclasses.fields(ServeConfig)}
        changed = {}
        for name, given, port in (("listen", self.port, 9002), ("admin", self.admin_port, 9090)):
            listener, default = getattr(config, name), usual[name]
            if given is None and isinstance(default, Listener) and listener.port == default.port:
                changed[name] = dataclasses.replace(listener, port=port)
        return dataclasses.replace(config, **changed)

    def _print(self) -> None:
        import sys

        import yaml

        from jaxroute.epp.envoy_config import envoy_config
        from jaxroute.serve.config import Listener

        listen = Listener("127.0.0.1", self.envoy_port)
        options = {"fail_open": self.fail_open, "full_duplex": self.full_duplex, "token_events": self.token_events}
        config = envoy_config(self.read(), listen, **options)
        sys.stdout.write(yaml.safe_dump(config, sort_keys=False))
