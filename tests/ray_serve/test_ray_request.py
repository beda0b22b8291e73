"""What is read of a call's arguments."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from jaxroute.serve.ray_request import read_arguments

CHAT = [{"role": "user", "content": "hello"}]


class Message:
    def model_dump(self) -> dict[str, str]:
        return {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("args", "kwargs", "found"),
    [
        ([{"prompt": "hello", "max_tokens": 5, "other": 1}], {}, {"prompt": "hello", "max_tokens": 5}),
        ([json.dumps({"prompt": "hello"}).encode()], {}, {"prompt": "hello"}),
        ([SimpleNamespace(messages=CHAT, n=2)], {}, {"messages": CHAT, "n": 2}),
        ([SimpleNamespace(messages=[Message()])], {}, {"messages": CHAT}),
        ([SimpleNamespace(prompt=[1, 2, 3], messages=None)], {}, {"prompt": [1, 2, 3], "messages": None}),
        (["adapter", {"prompt": "hello"}], {}, {"prompt": "hello"}),
        ([], {"request": SimpleNamespace(input="hello")}, {"input": "hello"}),
        ([], {"prompt": "hello", "max_tokens": 3}, {"prompt": "hello", "max_tokens": 3}),
        (["hello"], {}, {"prompt": "hello"}),
        ([b"\xff not json"], {}, {}),
        ([SimpleNamespace(scope={}, receive=None)], {}, {}),
        ([], {}, {}),
    ],
)
def test_the_prompt_is_found_wherever_it_is(args: list[Any], kwargs: dict[str, Any], found: dict[str, Any]) -> None:
    assert read_arguments(args, kwargs) == found
