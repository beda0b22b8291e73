"""API keys and TLS: read from files or the environment, kept out of every text that is printed."""

from __future__ import annotations

import hashlib
import hmac
import os
import ssl
from pathlib import Path

from jaxroute.errors import InputError, first_line
from jaxroute.serve.config import BackendConfig, Listener, ServeConfig

BEARER = "bearer "


class Keys:
    """The keys that clients may come with; their digests alone are kept."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._digests)

    def allow(self, authorization: str | None) -> bool:
        """Whether an `Authorization` header holds one of the keys; takes as long for a wrong one as for a right one."""
        if not self._digests:
            return True
        text = authorization or ""
        digest = _digest(text[len(BEARER) :].strip() if text[: len(BEARER)].lower() == BEARER else "")
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found


def client_keys(config: ServeConfig) -> Keys:
    """The clients' keys.

    Raises:
      InputError: they are to be read from where there are none.
    """
    texts = []
    if config.keys_file is not None:
        texts.append((_read(config.keys_file, "keys_file"), f"keys_file {config.keys_file}"))
    if config.keys_env is not None:
        texts.append((_variable(config.keys_env, "keys_env"), f"keys_env {config.keys_env}"))
    keys: list[str] = []
    for text, place in texts:
        lines = (line.split("#")[0] for line in text.splitlines())
        found = [key.strip() for line in lines for key in line.split(",") if key.strip()]
        if not found:
            raise InputError(f"{place}: holds no key; write one a line, or leave it out to ask for none")
        keys += found
    return Keys(tuple(keys))


def backend_key(backend: BackendConfig) -> str | None:
    """The key that a backend wants, if any.

    Raises:
      InputError: it is to be read from where there is none.
    """
    if backend.key_file is not None:
        key = _read(backend.key_file, f"backend {backend.name}: key_file").strip()
    elif backend.key_env is not None:
        key = _variable(backend.key_env, f"backend {backend.name}: key_env").strip()
    else:
        return None
    if not key or not key.isprintable() or not key.isascii():
        raise InputError(f"backend {backend.name}: its key is empty or holds other than printable ASCII; mend it")
    return key


def backend_tls(backend: BackendConfig) -> ssl.SSLContext | bool:
    """How a backend's certificate is checked.

    Raises:
      InputError: the file of certificates is none.
    """
    if backend.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=str(backend.ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"backend {backend.name}: ca_file {backend.ca_file} is no file of certificates ({first_line(error)}); "
            "give one in PEM"
        ) from error


def listener_tls(listener: Listener) -> ssl.SSLContext | None:
    """The TLS that a listener speaks, if any.

    Raises:
      InputError: certificate or key cannot be used.
    """
    if listener.cert_file is None or listener.key_file is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(str(listener.cert_file), str(listener.key_file), password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"cert_file {listener.cert_file}, key_file {listener.key_file}: cannot be used ({first_line(error)}); "
            "give a PEM certificate and its key without a password"
        ) from error
    return context


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path}: cannot be read ({first_line(error)}); give a readable text file") from error


def _variable(name: str, what: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InputError(f"{what} {name}: there is no such variable in the environment; set it, or leave it out")
    return value
