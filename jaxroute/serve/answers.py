"""Answers of the router's own, in OpenAI's words."""

from __future__ import annotations

import json
import math

from aiohttp import web

KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def error(
    status: int, message: str, code: str, *, retry_after_s: float | None = None, close: bool = False
) -> web.Response:
    """An error as OpenAI's clients read it.

    Args:
      status: of HTTP.
      message: for people; holds nothing that the client sent.
      code: for programs.
      retry_after_s: for `Retry-After`.
      close: whether the connection ends with it.
    """
    response = web.Response(status=status, body=error_body(status, message, code), content_type="application/json")
    if retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if close:
        response.force_close()
    return response


def error_body(status: int, message: str, code: str) -> bytes:
    """The body of an error."""
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
