"""Streams are cut at the ends of their events and counted, in whatever pieces they come."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from jaxroute.serve.sse import Counter, Events, error_event, usage_of


def event(data: object, end: bytes = b"\n\n") -> bytes:
    return b"data: " + json.dumps(data).encode() + end


def text(words: str, **fields: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": words}], **fields}


STREAM = b"".join(
    [event(text("a")), event(text("b\n\n"), b"\r\n\r\n"), b": ping\n\n", event(text("c")), b"data: [DONE]\n\n"]
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_in_any_pieces_the_same_bytes_pass_and_whole_events_only(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    events, counter, passed = Events(), Counter(), []
    for start, end in itertools.pairwise(places):
        whole = events.feed(STREAM[start:end])
        assert whole == b"" or whole.endswith((b"\n\n", b"\r\n\r\n"))
        passed.append(whole)
        counter.see(whole)
    assert events.rest() == b""
    assert b"".join(passed) == STREAM
    assert counter.tokens == 3


def test_an_event_without_an_end_is_left_over() -> None:
    events = Events()
    assert events.feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert events.rest() == b"data: 2"


def test_an_event_that_never_ends_is_not_kept_for_ever() -> None:
    events = Events()
    passed = sum(len(events.feed(b"x" * 100_000)) for _ in range(30))
    assert passed >= 2_000_000


def test_role_empty_and_usage_events_are_no_tokens() -> None:
    counter = Counter()
    for data in (
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": None},
    ):
        counter.see(event(data))
    assert counter.tokens == 0
    assert counter.see(event({"choices": [{"delta": {"content": "x"}}]})) == 1


def test_a_stated_usage_overrules_the_count() -> None:
    counter = Counter()
    assert counter.see(event(text("a", usage={"prompt_tokens": 9, "completion_tokens": 4}))) == 4
    assert counter.see(event(text("b", usage={"prompt_tokens": 9, "completion_tokens": 7}))) == 3
    assert (counter.tokens, counter.prompt_tokens, counter.stated) == (7, 9, True)


def test_a_usage_within_the_generated_text_is_none() -> None:
    counter = Counter()
    counter.see(event(text('"usage": {"completion_tokens": 999}')))
    assert (counter.tokens, counter.stated) == (1, False)


def test_the_usage_of_a_whole_answer() -> None:
    assert usage_of(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 5}}') == (3, 5)
    assert usage_of(b'{"usage": {"input_tokens": 3, "output_tokens": 5}}') == (3, 5)
    assert usage_of(b'{"object": "list"}') is None


def test_an_error_event_is_one_whole_event() -> None:
    written = error_event("lost", "backend_lost")
    assert written.endswith(b"\n\n")
    assert json.loads(written.removeprefix(b"data: "))["error"]["code"] == "backend_lost"
