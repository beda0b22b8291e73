"""Real vLLM engines: what they stream, how long their steps take, preemptions, and that none is left."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence

import numpy as np
import pytest

from jaxroute.live.client import Completion, completion_body, open_session, stream_completion
from jaxroute.live.server import Counters, read_counters
from jaxroute.testbed import StepTrace, Testbed, TestbedConfig, read_trace
from live_vllm import living_of, needs_vllm, small_profile

pytestmark = pytest.mark.live

JITTER_MS = 2.0
"""How late nearly all steps may end on a machine that has other things to do."""


def run(testbed: Testbed, sizes: Sequence[tuple[int, int]], engine: int = 0) -> tuple[list[Completion], StepTrace]:
    """Sends requests of (prompt, output) tokens at once to an engine: their answers, and the steps that it made."""
    begun = time.monotonic()

    async def send() -> list[Completion]:
        async with open_session() as session:
            url = testbed.urls[engine]
            bodies = [(completion_body(testbed.model, [7] * prompt, output), output) for prompt, output in sizes]
            return list(await asyncio.gather(*(stream_completion(session, url, *body) for body in bodies)))

    answers = asyncio.run(send())
    # The engine writes all that it has when it becomes idle, which its clients learn a moment before.
    time.sleep(0.3)
    return answers, read_trace(testbed.traces[engine]).between(begun)


def counters(testbed: Testbed, engine: int) -> Counters:
    async def read() -> Counters:
        async with open_session() as session:
            return await read_counters(session, testbed.urls[engine])

    return asyncio.run(read())


def post(url: str, body: dict[str, object]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())


def test_a_stream_has_the_ids_of_all_tokens(live: Testbed) -> None:
    body = {"model": live.model, "prompt": [5] * 40, "max_tokens": 24, "ignore_eos": True, "stream": True}
    text = post(f"{live.urls[0]}/v1/completions", {**body, "return_token_ids": True})
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    ids = [token for event in events for choice in event["choices"] for token in choice["token_ids"]]
    assert len(ids) == 24
    assert all(0 <= token < 4096 for token in ids)


def test_the_chat_api_answers(live: Testbed) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    answer = json.loads(
        post(f"{live.urls[1]}/v1/chat/completions", {"model": live.model, "messages": messages, "max_tokens": 5})
    )
    assert answer["usage"]["completion_tokens"] <= 5
    assert answer["usage"]["prompt_tokens"] > 3


def test_the_server_has_the_emulated_kv_cache(live: Testbed) -> None:
    read = counters(live, 0)
    assert (read.kv_blocks, read.block_size) == (live.profile.kv_blocks, live.profile.block_size) == (32, 32)


def test_every_step_takes_the_profiles_time(live: Testbed) -> None:
    prompt, output = 100, 60
    [answer], steps = run(live, [(prompt, output)])
    contexts = range(prompt + 1, prompt + output)
    wanted = [live.profile.step_ms([(prompt, 0)], []), *(live.profile.step_ms([], [context]) for context in contexts)]
    np.testing.assert_allclose(steps.target_ms, wanted, atol=1e-3)
    assert np.percentile(steps.lag_ms, 90) < JITTER_MS
    assert steps.overrun_share < 0.03
    # Lateness does not add up: the last step starts where the step times before it say.
    assert 1000 * (steps.start_s[-1] - steps.start_s[0]) == pytest.approx(sum(wanted[:-1]), abs=0.01)
    # And the client sees it: the tokens come as far apart as the steps.
    assert 1000 * (answer.token_s[-1] - answer.token_s[0]) == pytest.approx(sum(wanted[1:]), rel=0.03)
    assert 1000 * np.median(np.diff(answer.token_s)) == pytest.approx(np.median(wanted[1:]), abs=JITTER_MS)


def test_prompts_are_chunked_and_chunks_see_the_cache(live: Testbed) -> None:
    _, steps = run(live, [(600, 3)])
    assert steps.prefill_tokens.tolist() == [256, 256, 88, 0, 0]
    assert steps.prefill_times_kv.tolist() == [0, 256 * 256, 88 * 512, 0, 0]
    prefills = [(256, 0), (256, 256), (88, 512)]
    np.testing.assert_allclose(steps.target_ms[:3], [live.profile.step_ms([each], []) for each in prefills], atol=1e-3)


def test_engines_starved_of_kv_preempt_and_finish_all(live: Testbed) -> None:
    before = counters(live, 1).preemptions
    sizes = [(60, 200)] * 8
    answers, steps = run(live, sizes, engine=1)
    assert [answer.output_tokens for answer in answers] == [200] * 8
    preemptions = int(steps.preempted.sum())
    assert preemptions >= 3
    assert counters(live, 1).preemptions - before == preemptions
    # What was preempted is computed again, its generated tokens as part of the prompt.
    assert steps.prefill_tokens.sum() > 8 * 60 + 60 * preemptions
    assert steps.free_blocks.min() == 0
    assert steps.waiting.max() >= 3


def test_whole_prompts_are_not_chunked_and_nothing_is_left_at_the_end() -> None:
    needs_vllm()
    config = TestbedConfig(profile=small_profile(), instances=1, scheduler="whole-prompt", slow_down=1.5)
    with Testbed(config) as testbed:
        assert testbed.profile.max_model_len == 256
        _, steps = run(testbed, [(200, 4), (100, 4), (160, 4)])
        pids = testbed.pids
        assert len(living_of(pids)) >= 2
    assert living_of(pids) == []
    # No two of them fit into one step of 256 tokens.
    assert set(steps.prefill_tokens.tolist()) == {0, 100, 160, 200}
    assert steps.prefill_tokens.sum() == 460
    assert steps.target_ms.min() >= 1.5 * 15


def test_the_command_starts_engines_which_die_with_it() -> None:
    needs_vllm()
    command = [sys.executable, "-m", "jaxroute", "testbed", "--instances", "1", "--base-port", "8641"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as program:
        assert program.stdout is not None
        shown = []
        while "Ctrl-C" not in (line := program.stdout.readline()):
            assert line, shown
            shown.append(line)
        assert any(line.startswith("curl http://127.0.0.1:8641/v1/completions") for line in shown)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(program.pid)], capture_output=True, text=True, check=True
        )
        [engine] = map(int, children.stdout.split())
        assert len(living_of([engine])) >= 2
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while living_of([engine]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert living_of([engine]) == []
