"""What a client sees on top of the engine's steps, measured on idle servers, one short request at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import aiohttp
import numpy as np

from jaxroute.live.client import Completion, completion_body, stream_completion
from jaxroute.live.prompts import random_prompts
from jaxroute.profiles import StepProfile

TOKENS = 8
"""Output tokens of a probe."""

WARM_UP = 3
"""Probes at the beginning of which nothing is kept."""


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """Medians over the probes of all servers.

    Attributes:
      frontend_ms: TTFT less the step that computes the prompt: HTTP, tokens to and fro, the engine's queue.
      step_excess_ms: gap between two tokens less the decode step; what a step takes beyond its profile.
      probes: that they rest on.
    """

    frontend_ms: float
    step_excess_ms: float
    probes: int


async def measure_frontend(
    session: aiohttp.ClientSession,
    urls: Sequence[str],
    model: str,
    profile: StepProfile,
    prompt_tokens: np.ndarray,
    probes: int = 15,
) -> FrontEnd:
    """Sends `probes` requests to each server, one after the other.

    Args:
      session: of `open_session`.
      urls: idle servers.
      model: that they serve.
      profile: of the servers' steps.
      prompt_tokens: of the requests to come, whose lengths the probes take; those that fit into one step.
      probes: for each server.

    Raises:
      LiveError: a server fails.
    """
    longest = min(profile.max_num_batched_tokens, profile.max_model_len - TOKENS, profile.kv_tokens - TOKENS)
    lengths = np.quantile(np.minimum(prompt_tokens, longest), np.linspace(0.1, 0.9, probes)).astype(int)
    over, gaps = [], []
    for url in urls:
        for number, prompt in enumerate(random_prompts([*lengths[:WARM_UP], *lengths])):
            body = completion_body(model, prompt, TOKENS)
            answer = await stream_completion(session, url, body, TOKENS)
            if number >= WARM_UP:
                over.append(1e3 * answer.ttft_s - profile.step_ms([(len(prompt), 0)], []))
                gaps.append(_gap_ms(answer) - _decode_ms(profile, len(prompt)))
    return FrontEnd(max(0.0, float(np.median(over))), float(np.median(gaps)), len(over))


def _gap_ms(answer: Completion) -> float:
    # The first token takes longer than the others to come out.
    return 1e3 * float(answer.token_s[-1] - answer.token_s[1]) / (TOKENS - 2)


def _decode_ms(profile: StepProfile, prompt_tokens: int) -> float:
    """Mean of the decode steps that follow a prompt alone, from the second on."""
    steps = [profile.step_ms([], [prompt_tokens + number]) for number in range(2, TOKENS)]
    return float(np.mean(steps))
