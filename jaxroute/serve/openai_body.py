"""What the router reads of a request's body: how long its prompt is, what it asks for, and nothing that it keeps."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

CHARACTERS_PER_TOKEN = 4.0
"""Of a text in English, by most tokenizers; servers that state a prompt's tokens correct it (`TokenRule`)."""

TOKENS_PER_MESSAGE = 4
"""That a chat template adds to a message."""


class BodyError(ValueError):
    """The body is no request; the message says why, without repeating any of it."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
      model: its name, if given.
      stream: whether the answer is to be streamed.
      text: what the length predictor reads: the prompt, or a chat's last message of the user; None if it is no text.
      characters: of all texts of the prompt.
      tokens: of the prompt that need no estimate: token ids, what chat templates add.
      most_output: most output tokens of one answer, if given.
      answers: that are asked for.
      task: what the client named in `metadata.task`.
    """

    model: str | None = None
    stream: bool = False
    text: str | None = None
    characters: int = 0
    tokens: int = 0
    most_output: int | None = None
    answers: int = 1
    task: str | None = None


class TokenRule:
    """Prompt tokens from characters: their ratio as servers' `usage` has it, of each model, 4 to begin with."""

    def __init__(self, weight: float = 0.05, most_models: int = 64) -> None:
        self._ratio: dict[str | None, float] = {}
        self._weight, self._most_models = weight, most_models

    def tokens(self, asked: Asked) -> int:
        """The estimate for a prompt, at least 1."""
        ratio = self._ratio.get(asked.model, CHARACTERS_PER_TOKEN)
        return max(1, asked.tokens + round(asked.characters / ratio))

    def correct(self, asked: Asked, prompt_tokens: int) -> None:
        """A server says how many tokens a prompt had."""
        of_text = prompt_tokens - asked.tokens
        if asked.characters < 40 or of_text < 1:
            return
        if asked.model not in self._ratio and len(self._ratio) >= self._most_models:
            return
        ratio = self._ratio.get(asked.model, CHARACTERS_PER_TOKEN)
        seen = min(max(asked.characters / of_text, 0.25), 16.0)
        self._ratio[asked.model] = ratio + self._weight * (seen - ratio)


def read_body(raw: bytes) -> Asked:
    """Reads a body.

    Raises:
      BodyError: it is no JSON object in UTF-8, or a field that the router reads is of another type.
    """
    try:
        body = json.loads(raw)
    except UnicodeDecodeError:
        raise BodyError("the body is not valid UTF-8") from None
    except RecursionError:
        raise BodyError("the body is nested too deeply") from None
    except ValueError:
        raise BodyError("the body is not valid JSON") from None
    if not isinstance(body, dict):
        raise BodyError("the body must be a JSON object")
    return read_fields(body)


def read_fields(body: dict[str, Any]) -> Asked:
    """Reads the fields of a body.

    Raises:
      BodyError: a field that the router reads is of another type than it must be.
    """
    stream = body.get("stream")
    if not (stream is None or isinstance(stream, bool)):
        raise BodyError("stream must be true or false")
    model = body.get("model")
    if not (model is None or isinstance(model, str)):
        raise BodyError("model must be a text")
    metadata = body.get("metadata")
    task = metadata.get("task") if isinstance(metadata, dict) else None
    text, characters, tokens = _prompt(body)
    return Asked(
        model=model,
        stream=bool(stream),
        text=text,
        characters=characters,
        tokens=tokens,
        most_output=_count(body, "max_completion_tokens", "max_tokens", "max_output_tokens"),
        answers=_count(body, "n") or 1,
        task=task if isinstance(task, str) else None,
    )


def _prompt(body: dict[str, Any]) -> tuple[str | None, int, int]:
    """Text for the predictor, characters, and tokens beside them."""
    messages = body.get("messages")
    if isinstance(messages, list):
        texts = [(message, _content(message.get("content"))) for message in messages if isinstance(message, dict)]
        asked = [text for message, text in texts if message.get("role") == "user" and text]
        characters = sum(len(text) for _, text in texts)
        return (asked[-1] if asked else None), characters, TOKENS_PER_MESSAGE * len(messages)
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        return prompt, len(prompt), 0
    if not isinstance(prompt, list):
        return None, 0, 0
    if prompt and isinstance(prompt[0], int):
        return None, 0, len(prompt)
    texts_only = [each for each in prompt if isinstance(each, str)]
    ids = sum(len(each) for each in prompt if isinstance(each, list))
    parts = [_content(each.get("content")) for each in prompt if isinstance(each, dict)]
    characters = sum(map(len, texts_only)) + sum(map(len, parts))
    return (texts_only[0] if len(texts_only) == 1 else (parts[-1] if parts else None)), characters, ids


def _content(content: object) -> str:
    """The text of a message: as it is, or that of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))


def _count(body: dict[str, Any], *names: str) -> int | None:
    """The first of some fields that holds a number above 0; what is wrong with others the server says itself."""
    for name in names:
        value = body.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
    return None
