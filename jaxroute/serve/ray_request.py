"""What the arguments of a Ray Serve call say of a request: the OpenAI fields that the router reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Read = Callable[[Sequence[Any], Mapping[str, Any]], Mapping[str, Any]]
"""Takes positional and named arguments of a call, gives OpenAI fields, none where it finds none."""

PROMPTS = ("messages", "prompt", "input")

FIELDS = (
    *PROMPTS,
    "model",
    "stream",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "metadata",
)


def read_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the first argument that has a prompt: a body as an object, a dictionary, JSON or a mere text.

    Arguments that are named as fields are (`prompt=..., max_tokens=...`) count as a body themselves. An HTTP request
    that Ray's proxy passes on holds no body that a router could see.
    """
    for value in args:
        if found := _fields(value):
            return found
    if found := _fields(kwargs):
        return found
    for value in kwargs.values():
        if found := _fields(value):
            return found
    texts = [value for value in (*args, *kwargs.values()) if isinstance(value, str)]
    return {"prompt": texts[0]} if texts else {}


def _fields(value: Any) -> dict[str, Any]:
    """The fields of one argument; empty where it has no prompt."""
    if isinstance(value, (bytes, bytearray)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    if isinstance(value, Mapping):
        fields = {name: value[name] for name in FIELDS if name in value}
    elif isinstance(value, (str, int, float, list, tuple, type(None))):
        return {}
    else:
        fields = {name: getattr(value, name) for name in FIELDS if hasattr(value, name)}
    if not any(isinstance(fields.get(name), (str, list, tuple)) for name in PROMPTS):
        return {}
    if isinstance(fields.get("messages"), (list, tuple)):
        fields["messages"] = [_plain(message) for message in fields["messages"]]
    return fields


def _plain(message: Any) -> Any:
    """A message as a dictionary, whose parts are dictionaries too."""
    dump = getattr(message, "model_dump", None)
    if dump is not None:
        return dump()
    if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple)):
        return {**message, "content": [_plain(part) for part in message["content"]]}
    return message
