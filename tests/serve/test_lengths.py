"""What of a client's words on its request goes on to the brain and its log."""

from __future__ import annotations

import pytest

from jaxroute.serve.lengths import Lengths
from jaxroute.serve.openai_body import Asked
from jaxroute.serve.telemetry import Telemetry


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("translation", "translation"),
        ("question answering", "question answering"),
        (None, None),
        ("", None),
        ("x" * 65, None),
        ("a text\nwith lines", None),
        ('{"prompt": "PRIVATE"}', None),
    ],
)
async def test_a_task_is_kept_if_it_is_a_name(given: str | None, kept: str | None) -> None:
    assert (await Lengths(None, Telemetry()).predict(Asked(), given)).task == kept
