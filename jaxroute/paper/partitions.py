"""The paper's motivating search (its figure 2): eight requests, all ways to share them between two instances.

Axis letter: P partitions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute import metrics
from jaxroute.paired import Interval, mean_interval
from jaxroute.paper.measure import V100, fleet
from jaxroute.paper.part import Cell, Context, Row, Table
from jaxroute.plots import timeline_of
from jaxroute.policies.protocol import Stateless
from jaxroute.profiles import load_profile
from jaxroute.simulate import simulate
from jaxroute.token_gaps import token_gaps
from jaxroute.types import RouterView
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

REQUESTS, GAP_S = 8, 1.0
SHORTEST, LONGEST = 10, 100
"""Prompt and output tokens; the paper does not print their distribution, ours is uniform."""

PARTITIONS = 2 ** (REQUESTS - 1)
BETWEEN_S = 24.0
"""From one partition to the next: long after the last request of the one before is done."""

PRINTED_E2E_S, PRINTED_SPIKES = (27.03, 28.92, 29.47, 30.27, 31.13, 32.34), (18, 23, 22, 30, 34, 40)
PRINTED_RANDOM_S = 29.81

Numbers = dict[str, Any]
"""Results in JSON's own types."""


@dataclasses.dataclass(frozen=True)
class EveryPartition(Stateless):
    """Of the requests that come eight by eight, sends the first of each eight to instance 0, and the others by bits."""

    name: str = "every-partition"

    def choose(self, view: RouterView, key: jax.Array) -> jax.Array:
        """See `Stateless.choose`."""
        del key
        partition, row = jnp.divmod(view.dispatched, jnp.int32(REQUESTS))
        bit = jnp.right_shift(partition, jnp.maximum(row - 1, 0)) & 1
        return jnp.where(row == 0, 0, bit).astype(jnp.int32)


def searched(scheduler: str, seed: int) -> Callable[[], Numbers]:
    """`search` to be called later."""
    return lambda: search(scheduler, seed)


def search(scheduler: str, seed: int) -> Numbers:
    """All partitions of eight requests one after the other on two V100 with all of their KV cache.

    Returns:
      For each partition, E2E of all eight together, and gaps between tokens, at both instances, in which a prompt was
      computed, however short: prompts are, here.
    """
    rng = np.random.default_rng([seed, 0x70617274])
    prompts, outputs = rng.integers(SHORTEST, LONGEST, (2, REQUESTS), endpoint=True)
    starts = BETWEEN_S * np.arange(PARTITIONS)
    arrivals = (starts[:, None] + GAP_S * np.arange(REQUESTS)).ravel()
    table = RequestTable.create(
        arrivals, np.tile(prompts, PARTITIONS), np.tile(outputs, PARTITIONS), name="eight requests"
    )
    servers = fleet(V100, instances=2, scheduler=scheduler, kv_tokens=None)
    [result] = simulate(servers, table, predict(table, "oracle", seed=0), [EveryPartition()])
    gaps = token_gaps(timeline_of(result))
    place = np.clip(gaps.end_s // BETWEEN_S, 0, PARTITIONS - 1).astype(int)
    return {
        "e2e_s": metrics.e2e_s(result).reshape(PARTITIONS, REQUESTS).sum(axis=1).tolist(),
        "spikes": np.bincount(place[gaps.prompt_tokens > 0], minlength=PARTITIONS).tolist(),
    }


@dataclasses.dataclass(frozen=True)
class Spread:
    """What the partitions of one draw, or the printed ones, have between them.

    Attributes:
      best, worst: E2E against the mean over the partitions, %.
      fewest, most: spikes of the best and of the worst partition.
      correlation: of E2E and spikes over the partitions.
    """

    best: float
    worst: float
    fewest: float
    most: float
    correlation: float

    @classmethod
    def of(cls, e2e_s: Sequence[float], spikes: Sequence[float], mean_s: float | None = None) -> Spread:
        """Of E2E and spikes [P]; `mean_s` where it is not their mean."""
        total, count = np.asarray(e2e_s, np.float64), np.asarray(spikes, np.float64)
        middle = total.mean() if mean_s is None else mean_s
        return cls(
            best=float(100 * (total.min() / middle - 1)),
            worst=float(100 * (total.max() / middle - 1)),
            fewest=float(count[total.argmin()]),
            most=float(count[total.argmax()]),
            correlation=float(np.corrcoef(total, count)[0, 1]) if count.std() > 0 and total.std() > 0 else 0.0,
        )


PRINTED = Spread.of(PRINTED_E2E_S, PRINTED_SPIKES, PRINTED_RANDOM_S)
"""From the six partitions that the paper prints, against its random one."""


def spreads(context: Context, scheduler: str) -> list[Spread]:
    """Of each seed."""
    found = []
    for seed in context.seeds:
        key = {"part": "partitions", "scheduler": scheduler, "seed": seed, "between_s": BETWEEN_S}
        numbers = cast(Numbers, context.result(key, searched(scheduler, seed)))
        found.append(Spread.of(numbers["e2e_s"], numbers["spikes"]))
    return found


def partitions_table(found: dict[str, list[Spread]], command: str, seeds: str) -> Table:
    """A row for each scheduler."""

    def over(own: list[Spread], name: str) -> Interval:
        return mean_interval(np.asarray([getattr(each, name) for each in own]))

    columns = ("best", "worst", "fewest", "most", "correlation")
    rows = []
    for scheduler, own in found.items():
        cells = (
            Cell(over(own, name), round(getattr(PRINTED, name), places), decimals=places, signed=index < 2)
            for index, (name, places) in enumerate(zip(columns, (1, 1, 1, 1, 2), strict=True))
        )
        rows.append(Row(scheduler, tuple(cells)))
    return Table(
        title=f"Eight requests, all {PARTITIONS} ways to share them between two instances",
        columns=(
            "scheduler",
            "best E2E against the mean, %",
            "worst, %",
            "spikes of the best",
            "spikes of the worst",
            "correlation of E2E and spikes",
        ),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note=f"The paper's figure 2: one request a second, {SHORTEST} to {LONGEST} prompt and output tokens (drawn "
        "uniformly here); its correlation is that of the six partitions that it prints. As spikes count here all gaps "
        "with a prompt in them.",
    )


def partitions_remark(found: dict[str, list[Spread]]) -> str:
    """What of the paper's motivation is here."""
    alone_s = REQUESTS * (LONGEST * load_profile(V100).step_ms([], [2 * LONGEST])) / 1e3
    texts = []
    for scheduler, own in found.items():
        span = float(np.mean([each.worst - each.best for each in own]))
        together = float(np.mean([each.correlation for each in own]))
        texts.append(f"{span:.1f} % between best and worst under {scheduler} (correlation with spikes {together:+.2f})")
    return (
        f"In the paper's motivating search best and worst partition are {PRINTED.worst - PRINTED.best:.1f} % apart, "
        f"and E2E goes with spikes ({PRINTED.correlation:+.2f}). Here it is {' and '.join(texts)}. Its "
        f"requests cannot be what it says: {REQUESTS} of at most {LONGEST} output tokens take "
        f"at most {alone_s:.1f} s one by one on this profile, and its best partition takes {PRINTED_E2E_S[0]:g} s."
    )
