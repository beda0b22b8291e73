"""Which headers pass the router, in each direction."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from multidict import CIMultiDict

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)

ROUTING = ("x-jaxroute-", "x-gateway-", "x-envoy-", "x-forwarded-", "x-llm-d-", "x-slo-")
"""What begins so is said by routers, not by clients."""

ROUTING_EXACT = frozenset(
    (
        "forwarded",
        "x-real-ip",
        "x-data-parallel-rank",
        "x-prefiller-host-port",
        "x-session-token",
        "x-prediction-based-scheduling",
        "endpoint-load-metrics-format",
    )
)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_SET_ANEW = frozenset(("host", "content-length", "content-encoding", "accept-encoding", "expect", "x-request-id"))


def to_backend(headers: Mapping[str, str], request_id: str, key: str | None, *, keep_key: bool) -> CIMultiDict[str]:
    """The headers that a backend gets.

    Args:
      headers: the client's.
      request_id: of the request.
      key: the backend's own, if it wants one.
      keep_key: whether the client's `Authorization` passes where the backend has no key of its own.
    """
    named = _named_in_connection(headers)
    passed = CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if not (
            (low := name.lower()) in HOP_BY_HOP
            or low in _SET_ANEW
            or low in ROUTING_EXACT
            or low in named
            or low.startswith(ROUTING)
            or (low in ("authorization", "cookie") and not (keep_key and low == "authorization"))
        )
    )
    # What comes compressed could be neither counted nor ended with an error of the router's own.
    passed["Accept-Encoding"] = "identity"
    passed["X-Request-Id"] = request_id
    if key is not None:
        passed["Authorization"] = f"Bearer {key}"
    return passed


def to_client(headers: Mapping[str, str], request_id: str, backend: str) -> CIMultiDict[str]:
    """The headers that the client gets: the backend's, its name, and the request's id."""
    named = _named_in_connection(headers)
    passed = CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if (low := name.lower()) not in HOP_BY_HOP
        and low not in named
        and low not in ("content-length", "server", "date", "x-request-id", "set-cookie")
    )
    passed["X-Request-Id"] = request_id
    passed["X-Jaxroute-Backend"] = backend
    return passed


def request_id_of(headers: Mapping[str, str]) -> str:
    """The client's `X-Request-Id` if it is a harmless one, or else one of the router's."""
    given = headers.get("X-Request-Id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _named_in_connection(headers: Mapping[str, str]) -> frozenset[str]:
    """Headers that `Connection` says are for this hop only."""
    return frozenset(name.strip().lower() for name in headers.get("Connection", "").split(","))
