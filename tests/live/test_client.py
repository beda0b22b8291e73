import asyncio
import json

import numpy as np
import pytest
import uvloop

from fake_vllm import MODEL
from jaxroute.live.client import Completion, LiveError, completion_body, open_session, stream_completion
from jaxroute.live.prompts import END_ID, FIRST_ID, random_prompts
from jaxroute.live.server import read_counters, served_model


def complete(url: str, tokens: int = 6, prompt: int = 5, times: int = 1) -> list[Completion]:
    async def ask() -> list[Completion]:
        async with open_session() as session:
            bodies = [completion_body(MODEL, ids, tokens) for ids in random_prompts([prompt] * times)]
            return [await stream_completion(session, url, body, tokens) for body in bodies]

    return uvloop.run(asyncio.wait_for(ask(), 30))


def test_prompts_have_the_very_length_and_no_two_are_alike():
    prompts = random_prompts([1, 7, 300, 300])
    assert [len(prompt) for prompt in prompts] == [1, 7, 300, 300]
    assert all(FIRST_ID <= token < END_ID for prompt in prompts for token in prompt)
    assert prompts[2] != prompts[3] and random_prompts([300]) != random_prompts([300])
    assert random_prompts([300], seed=3) == random_prompts([300], seed=3)


def test_a_request_asks_for_exactly_so_many_tokens_and_for_their_count():
    body = json.loads(completion_body("m", [300, 301], 9))
    assert body["max_tokens"] == body["min_tokens"] == 9 and body["ignore_eos"] and body["temperature"] == 0
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert body["prompt"] == [300, 301] and body["stream"] is True


def test_every_token_has_its_time(serving):
    [server] = serving()
    [answer] = complete(server.url, tokens=6, prompt=40)
    assert answer.output_tokens == 6 and answer.prompt_tokens == 40
    assert (np.diff(answer.token_s) >= 0).all() and len(set(answer.token_s)) > 1
    assert 0 < answer.ttft_s < answer.e2e_s == answer.token_s[-1] - answer.sent_s


def test_tokens_of_one_chunk_are_counted_and_share_its_time(serving):
    [server] = serving(tokens_a_chunk=4)
    [answer] = complete(server.url, tokens=10)
    assert answer.output_tokens == 10
    assert len(set(answer.token_s[:4])) == 1 and len(set(answer.token_s[8:])) == 1


def test_without_the_count_in_every_chunk_the_first_and_the_last_token_have_their_time(serving):
    [server] = serving(tokens_a_chunk=3)

    async def ask() -> Completion:
        async with open_session() as session:
            body = json.loads(completion_body(MODEL, [300] * 8, 10))
            # What a router does that knows of `include_usage` only.
            body["stream_options"] = {"include_usage": True}
            return await stream_completion(session, server.url, json.dumps(body).encode(), 10)

    answer = uvloop.run(ask())
    assert (answer.output_tokens, answer.prompt_tokens) == (10, 8)
    assert answer.ttft_s < 0.8 * answer.e2e_s
    assert len(set(answer.token_s)) >= 3 and (np.diff(answer.token_s) >= 0).all()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("503", "answers 503"),
        ("cut", "of 6 tokens came|request failed"),
        ("close", "closes the connection before it answers"),
    ],
)
def test_a_fault_is_an_error_that_names_the_server(serving, fault, said):
    [server] = serving()
    server.break_with(fault)
    with pytest.raises(LiveError, match=said) as error:
        complete(server.url)
    assert server.url in str(error.value)


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again(serving):
    [server] = serving()
    server.break_with("close", times=1)
    assert complete(server.url)[0].output_tokens == 6
    assert len(server.seen) == 2


def test_fewer_tokens_than_asked_for_are_an_error(serving):
    [server] = serving()

    async def ask() -> None:
        async with open_session() as session:
            await stream_completion(session, server.url, completion_body(MODEL, [300], 3), 4)

    with pytest.raises(LiveError, match="3 of 4 tokens came"):
        uvloop.run(ask())


def test_nobody_there_is_an_error():
    with pytest.raises(LiveError, match=r"http://127\.0\.0\.1:9: the request failed"):
        complete("http://127.0.0.1:9")


def test_a_server_says_its_model_and_counters(serving):
    [server] = serving()

    async def read():
        async with open_session() as session:
            return await served_model(session, server.url), await read_counters(session, server.url)

    model, counters = uvloop.run(read())
    assert (model.name, model.max_model_len) == (MODEL, 4096)
    profile = server.profile
    assert (counters.kv_blocks, counters.block_size) == (profile.kv_blocks, profile.block_size)
    assert (counters.preemptions, counters.prefix_hits, counters.in_flight) == (0, 0, 0)


def test_metrics_that_are_none_are_an_error(serving):
    [server] = serving()
    server.break_with("garbage-metrics")

    async def read() -> None:
        async with open_session() as session:
            await read_counters(session, server.url)

    with pytest.raises(LiveError, match="cannot be read"):
        uvloop.run(read())
