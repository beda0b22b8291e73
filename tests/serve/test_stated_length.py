"""Output lengths that a gateway states in a header."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxroute.serve.config_file import read_config
from jaxroute.serve.lengths import FIRST_GUESS, Lengths
from jaxroute.serve.openai_body import Asked
from jaxroute.serve.telemetry import Telemetry
from serve.harness import completion, service

HEADER = "X-Jaxroute-Predicted-Tokens"


async def placed_with(value: str, **changes: object) -> tuple[int, int, list[str]]:
    """Predicted tokens and their most, of a request that says so, and the headers that the backend got."""
    async with service(1, **changes) as s:
        seen = []
        place = s.router.dispatcher.place

        async def noted(request, exclude=frozenset()):
            seen.append(request)
            return await place(request, exclude)

        s.router.dispatcher.place = noted  # type: ignore[method-assign]
        reply = await s.post(completion(40), headers={HEADER: value})
        assert reply.status == 200
        [incoming] = seen
        headers = [name.lower() for name in s.servers[0].seen[0].headers]
        return incoming.predicted_tokens, incoming.predicted_upper, headers


@pytest.mark.parametrize(("value", "tokens", "most"), [("90", 90, 90), ("90,127", 90, 127), (" 90,12 ", 90, 90)])
async def test_a_trusted_statement_is_taken_as_it_is_and_no_backend_sees_it(value: str, tokens: int, most: int) -> None:
    # The request itself asks for 40 tokens at the most.
    predicted, upper, headers = await placed_with(value, trust_predictions=True)
    assert (predicted, upper) == (tokens, most)
    assert HEADER.lower() not in headers


async def test_nobody_is_trusted_unless_the_configuration_says_so() -> None:
    predicted, upper, headers = await placed_with("7")
    assert (predicted, upper) == (40, 40)
    assert HEADER.lower() not in headers


@pytest.mark.parametrize("value", ["0", "-3", "many", "7,", "1" * 10, "3.5"])
async def test_a_statement_that_is_none_is_passed_over_and_counted(value: str) -> None:
    telemetry = Telemetry()
    length = await Lengths(None, telemetry).predict(Asked(), None, value)
    assert length.predicted_tokens == FIRST_GUESS
    assert telemetry.fallback.labels("stated-length")._value.get() == 1


def test_a_file_says_whom_to_trust(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("backends: [http://c:1]\ntrust_predictions: true\n")
    assert read_config(path).trust_predictions is True
