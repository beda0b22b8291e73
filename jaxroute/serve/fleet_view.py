"""`RouterView` in NumPy: the same fields, which `jaxroute.observation` takes unchanged.

Axis letters: I servers, B length buckets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxroute.profiles import COEFFICIENTS, StepProfile


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StepArrays:
    """`StepCoefficients`: the nine coefficients of the step time, seconds, float32 [I] each."""

    W: np.ndarray
    h: np.ndarray
    g: np.ndarray
    d: np.ndarray
    e: np.ndarray
    f: np.ndarray
    x: np.ndarray
    u: np.ndarray
    v: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class ProfileArrays:
    """What of `InstanceParams` estimates and features read.

    Attributes:
      step: the step-time coefficients.
      max_num_seqs: [I] int32.
      grad1, grad2: [I] float32, the paper's impact gradients, seconds per token.
    """

    step: StepArrays
    max_num_seqs: np.ndarray
    grad1: np.ndarray
    grad2: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class FleetView:
    """What the router knows now: the fields of `jaxroute.types.RouterView`, by the same definitions.

    Integers are wider, since a client may claim any number of tokens.

    Attributes:
      now, dt, queue_length, dispatched: see `RouterView`; Python numbers.
      head_prompt_tokens, head_predicted_bucket, head_predicted_tokens, head_predicted_upper, head_wait: likewise.
      in_flight, in_flight_tokens, awaiting_first, awaiting_prompt_tokens, predicted_tokens_left: [I] int64.
      full: [I] bool, servers that can take no request: at their limit, closed, or excluded for the head.
      kv_tokens: [I] int64, what the server says, or its profile.
      profile: of the servers.
      scraped_running, scraped_waiting: [I] int64; 0 for a server that was never scraped.
      scraped_kv_usage: [I] float32.
      scraped_age: seconds since the oldest of the scrapes that are there; 0 if there is none.
      least_predicted_left: [I] int64.
      awaiting_by_bucket, streaming_by_bucket: [I, B] int64; None if not counted.
      signal_age_s: [I] float64, seconds since each server's scrape, inf for one that was never scraped; not in
        `RouterView`.
      router: a number where other routers send to the same servers, None where there is no other.
    """

    now: int
    dt: float
    queue_length: int
    head_prompt_tokens: int
    head_predicted_bucket: int
    head_predicted_tokens: int
    head_predicted_upper: int
    head_wait: float
    dispatched: int
    in_flight: np.ndarray
    in_flight_tokens: np.ndarray
    awaiting_first: np.ndarray
    awaiting_prompt_tokens: np.ndarray
    predicted_tokens_left: np.ndarray
    full: np.ndarray
    kv_tokens: np.ndarray
    profile: ProfileArrays
    scraped_running: np.ndarray
    scraped_waiting: np.ndarray
    scraped_kv_usage: np.ndarray
    scraped_age: float
    least_predicted_left: np.ndarray
    awaiting_by_bucket: np.ndarray | None
    streaming_by_bucket: np.ndarray | None
    signal_age_s: np.ndarray
    router: int | None = None


def rows(view: FleetView, kept: np.ndarray) -> FleetView:
    """The view of those servers alone for which `kept` ([I] bool) holds."""
    return _rows(view, kept)


def _rows(part: Any, kept: np.ndarray) -> Any:
    fields = {name: getattr(part, name) for name in part.__slots__}
    changed = {
        name: value[kept] if isinstance(value, np.ndarray) else _rows(value, kept)
        for name, value in fields.items()
        if isinstance(value, (np.ndarray, ProfileArrays, StepArrays))
    }
    return type(part)(**(fields | changed))


def profile_arrays(profiles: Sequence[StepProfile]) -> ProfileArrays:
    """The profiles of I servers, in the units and the precision of the simulator's."""

    def column(name: str) -> np.ndarray:
        return np.asarray([profile.coefficients_ms[name] / 1e3 for profile in profiles], np.float32)

    return ProfileArrays(
        step=StepArrays(**{name: column(name) for name in COEFFICIENTS}),
        max_num_seqs=np.asarray([profile.max_num_seqs for profile in profiles], np.int32),
        grad1=np.asarray([profile.grad1 for profile in profiles], np.float32),
        grad2=np.asarray([profile.grad2 for profile in profiles], np.float32),
    )
