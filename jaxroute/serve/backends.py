"""The backends as the proxy has them: up or down, left alone or not, and what the brain is told of it."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from jaxroute.profiles import StepProfile, load_profile
from jaxroute.serve.breaker import Breaker, Health
from jaxroute.serve.config import BackendConfig, ServeConfig, Watching
from jaxroute.serve.secrets import backend_key, backend_tls
from jaxroute.serve.telemetry import Telemetry
from jaxroute.serve.types import Server

LOG = logging.getLogger(__name__)


class Gate(Protocol):
    """What of the dispatcher the registry changes."""

    def set_backends(self, servers: Sequence[Server]) -> None:
        """Changes the fleet."""

    def set_open(self, name: str, is_open: bool) -> None:
        """Opens or closes a backend."""


class Wait(Protocol):
    """Something that is waited for."""

    def give_up(self) -> None:
        """Whoever waits for it waits no longer."""


class Backend:
    """One server.

    Attributes:
      config: what the configuration says of it.
      profile: its step time and limits.
      key: that it wants.
      tls: how its certificate is checked.
      health, breaker: its state.
      is_open: what the brain was told last.
      check_now: set where there is reason to look after it before the next check is due.
      host: as requests there name it.
      waits: what requests there that have seen nothing yet wait for; given up when it goes down.
    """

    def __init__(self, config: BackendConfig, profile: StepProfile, watching: Watching) -> None:
        self.config, self.profile = config, profile
        self.key: str | None = backend_key(config)
        self.tls: ssl.SSLContext | bool = backend_tls(config)
        self.health = Health(watching.health_failures)
        self.breaker = Breaker(watching.breaker_failures, watching.breaker_s)
        self.is_open = False
        self.check_now = asyncio.Event()
        self.host = urlsplit(config.url).netloc
        self.waits: set[Wait] = set()

    @property
    def name(self) -> str:
        """Its name."""
        return self.config.name

    @property
    def headers(self) -> dict[str, str]:
        """Those of the router's own requests to it."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    def server(self) -> Server:
        """What the brain knows of it."""
        return Server(self.name, self.profile, self.config.max_in_flight)


def make_backends(config: ServeConfig) -> list[Backend]:
    """The backends of a configuration.

    Raises:
      InputError: a profile, key or certificate that cannot be read.
    """
    profiles = {name: load_profile(name) for name in {config.profile_of(each) for each in config.backends}}
    return [Backend(each, profiles[config.profile_of(each)], config.watching) for each in config.backends]


class Backends:
    """All of them; what happens to one is said here, and whether it may get requests follows."""

    def __init__(self, gate: Gate, telemetry: Telemetry) -> None:
        self._gate, self._telemetry = gate, telemetry
        self._by_name: dict[str, Backend] = {}

    def __iter__(self) -> Iterator[Backend]:
        return iter(list(self._by_name.values()))

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._by_name)

    def __getitem__(self, name: str) -> Backend:
        return self._by_name[name]

    def get(self, name: str) -> Backend | None:
        """The backend of that name, if it is still there."""
        return self._by_name.get(name)

    def replace(self, backends: Sequence[Backend]) -> None:
        """Changes the fleet; one that is as it was stays, one at the same address keeps its state.

        Requests at backends that are gone go on.
        """
        kept = []
        for new in backends:
            old = self._by_name.get(new.name)
            if old is not None and (old.config, old.key, old.profile) == (new.config, new.key, new.profile):
                kept.append(old)
                continue
            if old is not None and old.config.url == new.config.url:
                new.health, new.breaker, new.waits = old.health, old.breaker, old.waits
            kept.append(new)
        backends = kept
        self._by_name = {each.name: each for each in backends}
        self._gate.set_backends([each.server() for each in backends])
        for each in backends:
            each.is_open = self._may_open(each)
            self._gate.set_open(each.name, each.is_open)

    @property
    def any_open(self) -> bool:
        """Whether a request could go anywhere."""
        return any(each.is_open for each in self)

    def started(self, backend: Backend) -> None:
        """A request goes there."""
        backend.breaker.started()
        self._update(backend)

    def answered(self, backend: Backend) -> None:
        """A request was answered."""
        if backend.breaker.failures or backend.breaker.state != "closed":
            backend.breaker.succeeded()
            self._update(backend)

    def undecided(self, backend: Backend) -> None:
        """A request ended without a word on the backend."""
        backend.breaker.undecided()
        self._update(backend)

    def failed(self, backend: Backend, reason: str) -> None:
        """A request failed by its fault."""
        self._telemetry.failures.labels(backend.name, reason).inc()
        breaker, before = backend.breaker, backend.breaker.state
        breaker.failed(asyncio.get_running_loop().time())
        backend.check_now.set()
        self._update(backend)
        if breaker.state == "open" and before != "open":
            LOG.warning(
                "backend left alone", extra={"backend": backend.name, "reason": reason, "rest_s": breaker.rest_s}
            )
            asyncio.get_running_loop().call_later(breaker.rest_s + 0.001, self._update, backend)

    def health_passed(self, backend: Backend) -> None:
        """A health check passed."""
        if backend.health.passed():
            LOG.info("backend up", extra={"backend": backend.name})
            backend.breaker.recovered()
            self._update(backend)

    def health_failed(self, backend: Backend, reason: str, *, refused: bool = False) -> None:
        """A health check failed; requests there that have seen nothing yet are tried elsewhere once it is down."""
        self._telemetry.failures.labels(backend.name, "health").inc()
        if backend.health.failed(refused=refused):
            LOG.warning("backend down", extra={"backend": backend.name, "reason": reason})
            self._update(backend)
            for wait in list(backend.waits):
                wait.give_up()

    def _may_open(self, backend: Backend) -> bool:
        return backend.health.up and backend.breaker.may_try(asyncio.get_running_loop().time())

    def _update(self, backend: Backend) -> None:
        """Tells the brain, if anything has changed."""
        is_open = self._may_open(backend)
        if is_open != backend.is_open and self._by_name.get(backend.name) is backend:
            backend.is_open = is_open
            self._gate.set_open(backend.name, is_open)
