"""What is read of a body: the prompt's length, what is asked for."""

from __future__ import annotations

import json

import pytest

from jaxroute.serve.openai_body import Asked, BodyError, TokenRule, read_body


def read(**body: object) -> Asked:
    return read_body(json.dumps(body).encode())


def test_a_text_counts_four_characters_a_token() -> None:
    assert TokenRule().tokens(read(prompt="x" * 400)) == 100
    assert TokenRule().tokens(read(prompt="")) == 1


def test_token_ids_are_counted_not_estimated() -> None:
    assert TokenRule().tokens(read(prompt=[1, 2, 3])) == 3
    assert TokenRule().tokens(read(prompt=[[1, 2], [3]])) == 3
    assert read(prompt=[1, 2, 3]).text is None


def test_a_chat_counts_all_messages_and_predicts_by_the_users_last() -> None:
    asked = read(
        messages=[
            {"role": "system", "content": "s" * 40},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None},
            {"role": "user", "content": [{"type": "text", "text": "last"}, {"type": "image_url", "image_url": {}}]},
        ]
    )
    assert asked.text == "last"
    assert asked.characters == 40 + 5 + 4
    assert asked.tokens == 16


def test_what_is_asked_for() -> None:
    asked = read(model="m", stream=True, max_completion_tokens=7, max_tokens=9, n=2, metadata={"task": "qa"})
    assert (asked.model, asked.stream, asked.most_output, asked.answers, asked.task) == ("m", True, 7, 2, "qa")


@pytest.mark.parametrize(
    "body", [{"messages": "x"}, {"messages": [1]}, {"prompt": {"a": 1}}, {"n": "x"}, {"metadata": 1}]
)
def test_what_only_the_server_understands_passes(body: dict[str, object]) -> None:
    assert read(**body).characters == 0


def test_a_message_of_an_error_repeats_nothing() -> None:
    with pytest.raises(BodyError) as bad:
        read_body(b'{"prompt": "PRIVATE"')
    assert "PRIVATE" not in str(bad.value)


def test_the_ratio_follows_what_servers_say_of_each_model() -> None:
    rule, asked = TokenRule(), read(model="m", prompt="x" * 1000)
    for _ in range(200):
        rule.correct(asked, 500)
    assert rule.tokens(asked) == pytest.approx(500, rel=0.01)
    assert rule.tokens(read(model="other", prompt="x" * 1000)) == 250


def test_the_ratio_of_a_nonsensical_answer_is_bounded_and_models_are_limited() -> None:
    rule = TokenRule(weight=1.0, most_models=2)
    for name in ("a", "b", "c"):
        rule.correct(read(model=name, prompt="x" * 1000), 10**9)
    assert rule.tokens(read(model="a", prompt="x" * 1000)) == 4000
    assert rule.tokens(read(model="c", prompt="x" * 1000)) == 250
