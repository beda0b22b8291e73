"""`jaxroute serve`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.serve.config import ServeConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Route requests to vLLM servers: an OpenAI-compatible proxy in which the policy decides where each goes, and when.

    What is given here stands for what --config says. Metrics and administration listen apart, on the loopback address:
    GET /metrics, GET /admin/backends, POST /admin/reload. SIGHUP reads the configuration anew (backends and keys),
    SIGTERM lets the requests under way finish. Logs are JSON lines on standard error, without a word of any prompt.
    """

    config: Path | None = None
    """YAML file: backends, profile, policy, listen, admin, keys_file, limits, timeouts, watching and so on."""
    backend: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="URL")] = ()
    """Address of a vLLM server, http://HOST:PORT; many times for many."""
    policy: str | None = None
    """default (the shipped policy), a policy folder, a training run, or a heuristic such as
    fewest-outstanding-tokens."""
    shadow: str | None = None
    """A heuristic that decides, while the policy's choices are counted and logged beside its own."""
    profile: str | None = None
    """Step-time profile of the servers, by name (see `jaxroute profiles`) or JSON file."""
    predictor: str | None = None
    """default (the shipped length predictor), a predictor's folder, or none."""
    trust_predictions: bool | None = None
    """Take the header X-Jaxroute-Predicted-Tokens (TOKENS, or TOKENS,MOST) of a request for its predicted output
    length; only where every client is a gateway that may say so."""
    shared: bool | None = None
    """Other routers send to the same servers as well; the policy is shown what they have there, as far as the servers'
    metrics tell."""
    decision_log: Path | None = None
    """File to append decisions to: what was seen, the scores, the choice, the outcome; JSON lines."""
    host: str | None = None
    """Address to listen on; by default 127.0.0.1, this machine alone."""
    port: int | None = None
    """Port to listen on, 8080 by default; 0 for one that the system chooses."""
    admin_host: str | None = None
    """Address of metrics and administration; by default 127.0.0.1. Who reaches it needs no key."""
    admin_port: int | None = None
    """Port of metrics and administration, 8081 by default."""
    keys_file: Path | None = None
    """API keys of the clients, one a line; by default none is asked for."""
    keys_env: str | None = None
    """Name of an environment variable with API keys of the clients, with commas."""
    backend_key_env: str | None = None
    """Name of an environment variable with the API key that the servers given by --backend want."""
    tls_cert: Path | None = None
    """Certificate to listen with, PEM; with --tls-key."""
    tls_key: Path | None = None
    """Its private key, PEM."""
    scrape_s: float | None = None
    """Seconds between two readings of a server's /metrics, 0.05 to 1; by default 0.2."""
    log_level: str | None = None
    """debug, info, warning or error."""

    def run(self) -> None:
        """Runs it."""
        try:
            from jaxroute.serve.run import run
        except ModuleNotFoundError as error:
            raise InputError(f"jaxroute serve needs {error.name}: pip install 'jaxroute[serve]'") from error
        run(self.read)

    def read(self) -> ServeConfig:
        """The configuration of file and flags as it is now.

        Raises:
          InputError: something of it is wrong.
        """
        from jaxroute.serve.config import BackendConfig
        from jaxroute.serve.config_file import read_config

        if self.backend_key_env is not None and not self.backend:
            raise InputError("--backend-key-env: is for --backend; in a file, give the backend a key_env")
        backends = tuple(BackendConfig(url, key_env=self.backend_key_env) for url in self.backend) or None
        names = ["policy", "shadow", "profile", "predictor", "trust_predictions", "shared", "decision_log"]
        names += ["keys_file", "keys_env", "log_level"]
        config = read_config(self.config, backends=backends, **{name: getattr(self, name) for name in names})
        listen = {"host": self.host, "port": self.port, "cert_file": self.tls_cert, "key_file": self.tls_key}
        changed = {
            "listen": _with(config.listen, listen),
            "admin": _with(config.admin, {"host": self.admin_host, "port": self.admin_port}),
            "watching": _with(config.watching, {"scrape_s": self.scrape_s}),
        }
        return dataclasses.replace(config, **changed)


def _with(section: Any, values: dict[str, Any]) -> Any:
    return dataclasses.replace(section, **{name: value for name, value in values.items() if value is not None})
