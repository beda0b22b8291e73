"""The paper's four synthetic sets: light and heavy prompts and decodes, together or one kind after the other.

A prompt is heavy when its prefill alone takes `HEAVY_PROMPT_S` or longer on the profile, a decode when decoding alone
takes `HEAVY_DECODE_S` or longer (the paper, section 4.2): the token counts follow from the server. The paper prints
neither token ranges nor shares nor rate; ours are a light part of 2 to 20 % of the threshold and a heavy one of 100 to
150 %, uniform, all classes equally likely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxroute.errors import InputError
from jaxroute.profiles import StepProfile
from jaxroute.workload.arrivals import arrival_times
from jaxroute.workload.table import RequestTable

HEAVY_PROMPT_S = 0.5
HEAVY_DECODE_S = 5.0
LIGHT_RANGE = (0.02, 0.2)
HEAVY_MOST = 1.5

CLASSES = ("LL", "LH", "HL", "HH")
"""Prompt, then decode; L light, H heavy."""

LH, HL = CLASSES.index("LH"), CLASSES.index("HL")

SETS = ("lh-hl-random", "all-random", "lh-then-hl", "hl-then-lh")


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Token ranges of the classes, both ends included.

    Attributes:
      light_prompt, heavy_prompt, light_decode, heavy_decode: (least, most) tokens.
    """

    light_prompt: tuple[int, int]
    heavy_prompt: tuple[int, int]
    light_decode: tuple[int, int]
    heavy_decode: tuple[int, int]


def synthetic(
    name: str,
    requests: int,
    rate: float,
    seed: int,
    profile: StepProfile,
    *,
    arrivals: str = "poisson",
    cv: float = 1.0,
    heavy_prompt_s: float = HEAVY_PROMPT_S,
    heavy_decode_s: float = HEAVY_DECODE_S,
) -> RequestTable:
    """One of the four sets; `task` is the class.

    Args:
      name: of `SETS`.
      requests: N; of two phases each has half of them.
      rate: mean requests per second.
      seed: of all streams.
      profile: the server, which says what is heavy.
      arrivals: a process of `arrivals.PROCESSES`.
      cv: coefficient of variation of the gaps under `gamma`.
      heavy_prompt_s, heavy_decode_s: thresholds, seconds.

    Raises:
      InputError: an unknown set, or a server that cannot hold a heavy request.
    """
    ranges = token_ranges(profile, heavy_prompt_s, heavy_decode_s, has_both=name == "all-random")
    streams = np.random.default_rng([seed, 0x73796E74]).spawn(4)
    kind = _classes(name, requests, streams[1])
    heavy_prompt, heavy_decode = kind >= HL, kind % 2 == 1
    prompt = _draw(heavy_prompt, ranges.light_prompt, ranges.heavy_prompt, streams[2])
    output = _draw(heavy_decode, ranges.light_decode, ranges.heavy_decode, streams[3])
    times = arrival_times(arrivals, requests, rate, streams[0], cv=cv)
    return RequestTable.create(times, prompt, output, task=kind, task_names=CLASSES, name=name)


def token_ranges(
    profile: StepProfile,
    heavy_prompt_s: float = HEAVY_PROMPT_S,
    heavy_decode_s: float = HEAVY_DECODE_S,
    *,
    has_both: bool = True,
) -> Ranges:
    """The ranges on a server, its limits respected.

    Args:
      profile: the server.
      heavy_prompt_s, heavy_decode_s: thresholds, seconds.
      has_both: whether a request can have a heavy prompt and a heavy decode.

    Raises:
      InputError: the server cannot hold the longest kind of request; names the limit.
    """
    prompt = heavy_prompt_tokens(profile, heavy_prompt_s)
    decode = heavy_decode_tokens(profile, heavy_decode_s)
    limits = {
        "max_model_len": profile.max_model_len,
        "the KV cache": (profile.kv_blocks - profile.kv_blocks // 100) * profile.block_size,
        "max_num_batched_tokens": profile.max_num_batched_tokens,
    }
    limit = min(limits, key=lambda each: limits[each])
    most = limits[limit]
    longest = prompt + decode if has_both else max(prompt + _light(decode)[1], _light(prompt)[1] + decode)
    if longest > most:
        raise InputError(
            f"profile {profile.name}: with a heavy prompt of {prompt} tokens ({heavy_prompt_s} s of prefill) and a "
            f"heavy decode of {decode} ({heavy_decode_s} s of decode) a request exceeds {limit} ({most} tokens); "
            "use another profile, or lower --heavy-prompt-s or --heavy-decode-s"
        )
    # What the server can hold above the thresholds is shared out in proportion.
    stretch = min(HEAVY_MOST, most / longest)
    return Ranges(
        light_prompt=_light(prompt),
        heavy_prompt=(prompt, int(prompt * stretch)),
        light_decode=_light(decode),
        heavy_decode=(decode, int(decode * stretch)),
    )


def heavy_prompt_tokens(profile: StepProfile, seconds: float) -> int:
    """The shortest prompt whose prefill alone takes that long."""
    return _first(lambda tokens: profile.step_ms([(tokens, 0)], []) >= seconds * 1e3, profile, "prompt")


def heavy_decode_tokens(profile: StepProfile, seconds: float) -> int:
    """The shortest output whose decode alone takes that long, its context growing from nothing.

    The prefill yields the first token, so D output tokens take D - 1 decode steps.
    """
    return _first(lambda tokens: _decode_ms(profile, tokens) >= seconds * 1e3, profile, "decode")


def _decode_ms(profile: StepProfile, tokens: int) -> float:
    # The step time is linear in the context: the middle step stands for all.
    steps = tokens - 1
    first, last = profile.step_ms([], [1]), profile.step_ms([], [max(steps, 1)])
    return steps * (first + last) / 2


def _first(is_heavy: Callable[[int], bool], profile: StepProfile, what: str) -> int:
    low, high = 0, 1
    while not is_heavy(high):
        low, high = high, 2 * high
        if high > 2**24:
            raise InputError(f"profile {profile.name}: no {what} is heavy on it; lower --heavy-{what}-s")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_heavy(middle) else (middle, high)
    return high


def _light(threshold: int) -> tuple[int, int]:
    least, most = LIGHT_RANGE
    return max(1, int(threshold * least)), max(1, int(threshold * most))


def _classes(name: str, requests: int, rng: np.random.Generator) -> np.ndarray:
    if name == "all-random":
        return rng.integers(0, len(CLASSES), requests)
    if name == "lh-hl-random":
        return rng.choice([LH, HL], requests)
    if name == "lh-then-hl":
        return np.where(np.arange(requests) < requests // 2, LH, HL)
    if name == "hl-then-lh":
        return np.where(np.arange(requests) < requests // 2, HL, LH)
    raise InputError(f"unknown synthetic set {name!r}; known: {', '.join(SETS)}")


def _draw(
    heavy: np.ndarray, light: tuple[int, int], heavy_range: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    least = np.where(heavy, heavy_range[0], light[0])
    most = np.where(heavy, heavy_range[1], light[1])
    return rng.integers(least, most + 1)
