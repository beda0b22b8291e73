"""From a request table on the host to the arrays that the simulator reads."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.errors import InputError
from jaxroute.length_edges import are_edges
from jaxroute.profiles import StepProfile
from jaxroute.router_order import DEFAULT_AGEING, shortness
from jaxroute.types import Time, Workload
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.table import RequestTable

LATEST_STEP = 2**30


def to_device(
    table: RequestTable,
    prediction: Prediction,
    *,
    dt: float,
    size: int | None = None,
    ageing: float = DEFAULT_AGEING,
    spf_edges: tuple[int, ...] = (),
    profile: StepProfile | None = None,
) -> Workload:
    """The workload of a table.

    Args:
      table: the requests.
      prediction: what the router is told of their output lengths.
      dt: router interval, seconds.
      size: N, padding the table; by default its length.
      ageing: predicted tokens per second of waiting, >= 0, by which the shortest-predicted order puts a request
        further to the front; 0 lets long requests starve.
      spf_edges: ascending; predicted tokens are rounded down to the nearest of them, or to 0, before that order ranks
        them, so that requests between two edges go by arrival; without any they count as they are.
      profile: the server that the ideal times stand for; without one they are 1 s.

    Raises:
      InputError: the table is longer than `size`, an arrival is too late for the int32 interval count, or a bad
        `ageing` or `spf_edges`.
    """
    count = len(table)
    size = count if size is None else size
    _check(table, dt=dt, size=size, ageing=ageing, spf_edges=spf_edges)
    step, offset, visible = arrival_steps(table.arrival_s, dt)
    key = shortness(table.arrival_s, prediction.tokens, ageing=ageing, edges=spf_edges)

    def column(values: np.ndarray, fill: int, dtype: type = np.int32) -> jax.Array:
        padded: np.ndarray = np.full(size, fill, dtype)
        padded[:count] = values
        return jnp.asarray(padded)

    return Workload(
        arrival=Time(step=column(step, LATEST_STEP), offset=column(offset, 0, np.float32)),
        visible_step=column(visible, LATEST_STEP),
        prompt_tokens=column(table.prompt_tokens, 1),
        output_tokens=column(table.output_tokens, 1),
        predicted_bucket=column(prediction.bucket, 0),
        predicted_tokens=column(prediction.tokens, 1),
        predicted_upper=column(prediction.upper, 1),
        task=column(table.task, 0),
        lead_s=jnp.asarray(_lead_sums(visible, table.arrival_s, dt, size)),
        ideal_s=jnp.asarray(_ideal_s(table.prompt_tokens, prediction.tokens, profile, size)),
        priority=column(_priority(table.arrival_s, key), 0),
        num_requests=jnp.int32(count),
    )


def _check(table: RequestTable, *, dt: float, size: int, ageing: float, spf_edges: tuple[int, ...]) -> None:
    if len(table) > size:
        raise InputError(f"{table.name}: {len(table)} requests do not fit in a workload of {size}")
    if table.arrival_s[-1] / dt > LATEST_STEP:
        raise InputError(f"{table.name}: the last arrival is {table.arrival_s[-1]:.0f} s, too late for dt = {dt} s")
    if not (np.isfinite(ageing) and ageing >= 0):
        raise InputError(f"ageing is {ageing!r}, must be a finite number of tokens per second >= 0")
    if not are_edges(spf_edges):
        raise InputError(f"spf_edges is {list(spf_edges)}, must be numbers of tokens above 0 that ascend")


def stack(workloads: Sequence[Workload]) -> Workload:
    """Workloads of one size N as one, with a leading axis on every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *workloads)


def arrival_steps(arrival_s: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interval and offset of each arrival, and the first interval in which it can be the head of the queue.

    Rows in another order than that of arrival (a replay of given dispatches) become visible in the order of the rows.

    An arrival within a nanosecond of the start of an interval counts as on it: decimal times are no float64 multiples.
    """
    nearest = np.round(arrival_s / dt)
    on_border = np.abs(arrival_s - nearest * dt) <= 1e-9
    step = np.where(on_border, nearest, np.floor(arrival_s / dt))
    offset = np.where(on_border, 0.0, np.clip(arrival_s - step * dt, 0.0, np.nextafter(np.float32(dt), np.float32(0))))
    visible = np.maximum.accumulate(np.where(on_border, step, step + 1))
    return step.astype(np.int64), offset.astype(np.float32), visible.astype(np.int64)


def _priority(arrival_s: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Rank by `shortness`, of equals by arrival."""
    order = np.lexsort((arrival_s, key))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _lead_sums(visible: np.ndarray, arrival_s: np.ndarray, dt: float, size: int) -> np.ndarray:
    lead = np.maximum(visible * dt - arrival_s, 0.0)
    sums = np.concatenate([[0.0], np.cumsum(lead)])
    return np.pad(sums, (0, size + 1 - len(sums)), mode="edge").astype(np.float32)


def _ideal_s(
    prompt_tokens: np.ndarray, predicted_tokens: np.ndarray, profile: StepProfile | None, size: int
) -> np.ndarray:
    """Prompt tokens times the time of one, and predicted output tokens times that of a decode step (section 5.3)."""
    ideal = np.ones(size, np.float32)
    if profile is not None:
        per_prompt_token = (profile.step_ms([(1000, 0)], []) - profile.step_ms([(1, 0)], [])) / 999
        per_output_token = profile.step_ms([], [512])
        ideal[: len(prompt_tokens)] = (prompt_tokens * per_prompt_token + predicted_tokens * per_output_token) / 1e3
    return ideal
