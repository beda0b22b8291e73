"""The paper's light and heavy requests: which token counts they are on a given machine.

A prompt is heavy when its prefill alone in a step takes 0.5 s or more, a decode when decoding alone takes 5 s or more
(arXiv 2408.13510, section 4.2; both limits can be set). D output tokens take D - 1 decode steps, since the prefill
yields the first token; their time depends a little on the prompt they attend to. Here a decode is *heavy* when it
takes 5 s behind a prompt of one token, hence behind any prompt, and *light* lengths stay below 5 s behind the longest
prompt that the machine holds, hence behind any.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile

HEAVY_PROMPT_S = 0.5
HEAVY_DECODE_S = 5.0
LIGHT_RANGE = (0.1, 0.5)
HEAVY_RANGE = (1.0, 1.5)
MOST_TOKENS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Room:
    """The longest request, prompt + output, that a server surely holds, whatever its scheduler, and what limits it.

    Attributes:
      tokens: prompt + output tokens.
      limit: the limit in words.
    """

    tokens: int
    limit: str


@dataclasses.dataclass(frozen=True)
class LengthRanges:
    """Shortest and longest lengths, tokens, both ends included.

    Attributes:
      light_prompt, heavy_prompt: prompt tokens of light and heavy prompts.
      light_output, heavy_output: output tokens of light and heavy decodes.
      room: longest prompt + output.
    """

    light_prompt: tuple[int, int]
    heavy_prompt: tuple[int, int]
    light_output: tuple[int, int]
    heavy_output: tuple[int, int]
    room: Room


def prefill_s(profile: StepProfile, prompt_tokens: int) -> float:
    """Seconds of a step that holds one whole prompt and nothing else."""
    return profile.step_ms([(prompt_tokens, 0)], []) / 1e3


def decode_s(profile: StepProfile, prompt_tokens: int, output_tokens: int) -> float:
    """Seconds to decode output tokens 2 to D of a request that runs alone (the prefill yields the first)."""
    steps = output_tokens - 1
    # The step time is affine in the context, and the contexts are prompt + 1, ..., prompt + steps.
    contexts = steps * prompt_tokens + steps * (steps + 1) // 2
    return (steps * profile.step_ms([], [0]) + profile.coefficients_ms["d"] * contexts) / 1e3


def longest_request(profile: StepProfile) -> Room:
    """The longest request that runs to its end under every scheduler, even if it is preempted before its last token.

    Preempted so, it needs a prefill of prompt + output - 1 tokens in one step, and the KV blocks for it above the
    watermark of prefill-first.
    """
    usable_kv = (profile.kv_blocks - profile.kv_blocks // 100) * profile.block_size
    rooms = (
        Room(profile.max_model_len, f"max_model_len = {profile.max_model_len}"),
        Room(usable_kv + 1, f"its KV cache of {profile.kv_tokens} tokens ({usable_kv} above the watermark)"),
        Room(profile.max_num_batched_tokens + 1, f"max_num_batched_tokens = {profile.max_num_batched_tokens}"),
    )
    return min(rooms, key=lambda room: room.tokens)


def length_ranges(
    profile: StepProfile, heavy_prompt_s: float = HEAVY_PROMPT_S, heavy_decode_s: float = HEAVY_DECODE_S
) -> LengthRanges:
    """Light lengths from 10 to 50 % of the threshold, heavy ones from the threshold to 1.5 times it, exact to a token.

    The ranges of heavy lengths are not cut to the room here: that takes the other half of the request.

    Args:
      profile: the machine.
      heavy_prompt_s: shortest prefill, seconds, of a heavy prompt.
      heavy_decode_s: shortest decode phase, seconds, of a heavy decode.

    Raises:
      InputError: a limit that is not positive, or one that leaves no light or no heavy length.
    """
    for name, value in (("heavy_prompt_s", heavy_prompt_s), ("heavy_decode_s", heavy_decode_s)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value!r}, must be a finite number of seconds above 0")
    room = longest_request(profile)
    prompt = _first(lambda tokens: prefill_s(profile, tokens) >= heavy_prompt_s)
    output = _first(lambda tokens: decode_s(profile, 1, tokens) >= heavy_decode_s)
    if prompt is None or output is None:
        raise InputError(f"profile {profile.name}: no length is heavy; lower heavy_prompt_s or heavy_decode_s")
    if prompt == 1:
        raise InputError(
            f"profile {profile.name}: even a prompt of one token takes {heavy_prompt_s:g} s; raise heavy_prompt_s"
        )
    heavy_behind_longest = _first(lambda tokens: decode_s(profile, room.tokens, tokens) >= heavy_decode_s)
    assert heavy_behind_longest is not None, "a longer context takes no less time"
    return LengthRanges(
        light_prompt=_light(prompt, prompt - 1),
        heavy_prompt=_heavy(prompt),
        light_output=_light(output, heavy_behind_longest - 1),
        heavy_output=_heavy(output),
        room=room,
    )


def _light(threshold: int, most: int) -> tuple[int, int]:
    longest = min(max(1, math.floor(LIGHT_RANGE[1] * threshold)), most)
    return min(max(1, math.ceil(LIGHT_RANGE[0] * threshold)), longest), longest


def _heavy(threshold: int) -> tuple[int, int]:
    return threshold, math.floor(HEAVY_RANGE[1] * threshold)


def _first(holds: Callable[[int], bool]) -> int | None:
    """The smallest token count that a monotone condition holds for, by bisection; None where it never does."""
    if not holds(MOST_TOKENS):
        return None
    below, reached = 0, MOST_TOKENS
    while reached - below > 1:
        middle = (below + reached) // 2
        below, reached = (below, middle) if holds(middle) else (middle, reached)
    return reached
