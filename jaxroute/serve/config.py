"""What `jaxroute serve` is told: frozen, checked, without a secret in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from urllib.parse import urlsplit

from jaxroute.errors import InputError

NAME = re.compile(r"[A-Za-z0-9._:-]{1,128}")
"""What a backend may be called: the name is a metric's label and a response header."""


@dataclasses.dataclass(frozen=True)
class BackendConfig:
    """One vLLM server.

    Attributes:
      url: its root, such as `http://10.0.0.1:8000`, without `/v1`.
      name: what logs and metrics call it; host and port by default.
      profile: step-time profile; by default the router's.
      key_env, key_file: where the API key that it wants stands.
      ca_file: certificates that its own is checked against; the system's by default.
      max_in_flight: requests at the most that the router has there at once.
    """

    url: str
    name: str = ""
    profile: str | None = None
    key_env: str | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"backend {self.url!r}: {error}; give http://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(f"backend {self.url!r}: is no address of a server; give http://HOST:PORT")
        if parts.username is not None or parts.password is not None:
            raise InputError(f"backend {parts.hostname}: holds a password; name its key by key_env or key_file instead")
        if parts.path.rstrip("/"):
            raise InputError(f"backend {self.url!r}: leave out {parts.path}; the router adds /v1 and the rest")
        default = f"{parts.hostname}:{port or (443 if parts.scheme == 'https' else 80)}"
        object.__setattr__(self, "url", self.url.rstrip("/"))
        object.__setattr__(self, "name", self.name or default)
        if not NAME.fullmatch(self.name):
            raise InputError(f"backend {self.url}: name {self.name!r} may hold letters, digits and ._:- only")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise InputError(f"backend {self.name}: max_in_flight is {self.max_in_flight}, must be at least 1")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is too much.

    Attributes:
      body_bytes: of a request.
      held_bytes: of the bodies of all requests under way, beyond which there is a 503.
      answer_bytes: of an answer that is not streamed.
      queue: requests that wait at the router, beyond which there is a 429.
      wait_s: seconds that one waits there, beyond which there is a 429.
      retries: further backends that are tried where one fails before the first byte.
    """

    body_bytes: int = 16 * 2**20
    held_bytes: int = 2**30
    answer_bytes: int = 64 * 2**20
    queue: int = 1000
    wait_s: float = 60.0
    retries: int = 2


@dataclasses.dataclass(frozen=True)
class Timeouts:
    """Seconds.

    Attributes:
      connect_s: to connect to a backend.
      answer_s: until a backend sends anything of an answer that is not streamed: it comes whole, so this bounds it.
      first_byte_s: until a backend begins a stream; then another one is tried. A backend whose `/health` fails is left
        sooner (see `Watching`): this is for one that says it is well and answers nothing. It must be longer than
        requests wait at the servers in an overload, or they are taken away there and start again elsewhere, which adds
        to the load.
      stream_s: between two pieces of a stream.
      body_s: until a client has sent its body.
      client_idle_s: that a client's connection may be open without a whole request header.
      write_s: that a client may leave a stream unread.
      drain_s: that requests under way have to finish when the router shuts down.
    """

    connect_s: float = 2.0
    answer_s: float = 600.0
    first_byte_s: float = 120.0
    stream_s: float = 120.0
    body_s: float = 30.0
    client_idle_s: float = 30.0
    write_s: float = 60.0
    drain_s: float = 60.0


@dataclasses.dataclass(frozen=True)
class Watching:
    """How the backends are watched.

    Attributes:
      health_s: between two checks of `/health`.
      health_timeout_s: that one may take.
      health_failures: failed checks in a row by which a backend is down; a refused connection is enough alone.
      scrape_s: between two readings of `/metrics`, 0.05 to 1.
      breaker_failures: failed requests in a row by which a backend is left alone,
      breaker_s: for so long; then one request tries it.
    """

    health_s: float = 0.5
    health_timeout_s: float = 2.0
    health_failures: int = 3
    scrape_s: float = 0.2
    breaker_failures: int = 5
    breaker_s: float = 30.0


@dataclasses.dataclass(frozen=True)
class Listener:
    """Where the router listens.

    Attributes:
      host, port: port 0 is one that the system chooses.
      cert_file, key_file: of TLS; none by default.
    """

    host: str
    port: int
    cert_file: Path | None = None
    key_file: Path | None = None


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """All of it.

    Attributes:
      backends: the servers.
      profile: step-time profile of those that name none.
      policy: `default`, a policy folder or training run, or a heuristic.
      shadow: a heuristic that decides, while the policy's choices are written beside its own.
      predictor: `default`, a predictor's folder, or `none`.
      trust_predictions: whether the header `X-Jaxroute-Predicted-Tokens` of a request stands for the predictor; only
        where every client is a gateway that may say so.
      shared: whether other routers send to the same servers, see `BrainSettings`.
      decision_log: file of decisions, JSON lines.
      keys_file, keys_env: where the clients' API keys stand, one a line or with commas; neither: no key is asked for.
      listen, admin: the OpenAI endpoints; metrics and administration.
      log_level: debug, info, warning or error.
    """

    backends: tuple[BackendConfig, ...]
    profile: str = "a100-80gb-llama31-8b"
    policy: str = "default"
    shadow: str | None = None
    predictor: str = "default"
    trust_predictions: bool = False
    shared: bool = False
    decision_log: Path | None = None
    keys_file: Path | None = None
    keys_env: str | None = None
    listen: Listener = Listener("127.0.0.1", 8080)
    admin: Listener = Listener("127.0.0.1", 8081)
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    watching: Watching = Watching()
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not self.backends:
            raise InputError("no backend: give --backend http://HOST:PORT, or `backends` in the configuration file")
        for what in ("name", "url"):
            values = [getattr(backend, what) for backend in self.backends]
            if twice := next((value for value in values if values.count(value) > 1), None):
                raise InputError(f"backends: {what} {twice} is there twice; leave one out or rename it")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise InputError(f"log_level is {self.log_level!r}, must be debug, info, warning or error")
        for part, section in (("limits", self.limits), ("timeouts", self.timeouts), ("watching", self.watching)):
            _check_positive(part, section)
        if not 0.05 <= self.watching.scrape_s <= 1:
            raise InputError(f"watching.scrape_s is {self.watching.scrape_s}, must be 0.05 to 1 (seconds)")
        for part, listener in (("listen", self.listen), ("admin", self.admin)):
            _check_listener(part, listener)

    def profile_of(self, backend: BackendConfig) -> str:
        """Name or file of a backend's profile."""
        return backend.profile or self.profile


def _check_positive(part: str, section: object) -> None:
    for field in dataclasses.fields(section):  # type: ignore[arg-type]
        value, least = getattr(section, field.name), 0 if field.name in ("retries", "drain_s") else None
        if not value < float("inf") or not (value > 0 or value == least):
            raise InputError(f"{part}.{field.name} is {value}, must be a number above 0")


def _check_listener(part: str, listener: Listener) -> None:
    if not 0 <= listener.port <= 65535:
        raise InputError(f"{part}.port is {listener.port}, must be 0 to 65535")
    if (listener.cert_file is None) != (listener.key_file is None):
        raise InputError(f"{part}: TLS needs both cert_file and key_file; give the other one too")
