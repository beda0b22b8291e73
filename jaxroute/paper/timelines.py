"""The paper's main run with everything over time: what parts (d) and (e) share, so that it is simulated once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from jaxroute import metrics
from jaxroute.candidates import Candidate, by_program
from jaxroute.leaderboard.entrants import fingerprint
from jaxroute.paired import Interval, mean_interval, relative_difference
from jaxroute.paper.compare import LEARNED, REFERENCE
from jaxroute.paper.latency import REQUESTS, setting
from jaxroute.paper.measure import Setting, entrants
from jaxroute.paper.part import Context
from jaxroute.plots import timeline_of
from jaxroute.results import RunResult
from jaxroute.simulate import simulate
from jaxroute.token_gaps import token_gaps
from jaxroute.workload.prediction import predict

POLICIES = (REFERENCE, *LEARNED, "dqn")
"""Round robin and the paper's variants; the last is trained by its own algorithm."""

VERSION = 1
"""Of `numbers_of`; raised when its numbers change."""

SERIES_BINS, SPIKE_BINS, QUANTILES = 160, 480, 101

Numbers = dict[str, Any]
"""Results in JSON's own types."""


@dataclasses.dataclass(frozen=True)
class MainRun:
    """What was measured.

    Attributes:
      setting: servers and requests.
      seeds: of the runs.
      runs: policy -> the numbers of each seed.
      missing: sentences on policies that are not to be had.
    """

    setting: Setting
    seeds: tuple[int, ...]
    runs: dict[str, list[Numbers]]
    missing: tuple[str, ...]

    def column(self, policy: str, name: str) -> np.ndarray:
        """[seeds] float64."""
        return np.asarray([each[name] for each in self.runs[policy]], np.float64)

    def mean(self, policy: str, name: str, scale: float = 1.0) -> Interval:
        """Over the seeds, times `scale`."""
        return mean_interval(scale * self.column(policy, name))

    def change(self, policy: str, name: str) -> Interval:
        """Against round robin on the same requests, %."""
        return relative_difference(self.column(policy, name), self.column(REFERENCE, name))

    @property
    def policies(self) -> tuple[str, ...]:
        """Those that ran, in the paper's order."""
        return tuple(name for name in POLICIES if name in self.runs)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The setting in words."""
        profile = self.setting.fleet.profiles[0]
        return (
            f"{len(self.setting.fleet.profiles)} instances of {profile.name} with {profile.kv_tokens:,} KV tokens, "
            f"{self.setting.fleet.schedulers[0]}; {self.setting.requests:,} requests of the five tasks, Poisson at "
            f"{self.setting.rate_per_s:g} a second, the same for every policy; the right length bucket is told with "
            f"probability {self.setting.prediction}.",
            *self.missing,
        )

    def simulate_command(self) -> str:
        """One seed of round robin by `jaxroute simulate`; a run under DIR/trained stands where a policy's name does."""
        profile = self.setting.fleet.profiles[0]
        return (
            f"jaxroute simulate --workload {self.setting.workload} --profile {profile.name} --kv-tokens "
            f"{profile.kv_tokens} --scheduler {self.setting.fleet.schedulers[0]} --rate {self.setting.rate_per_s:g} "
            f"--requests {self.setting.requests} --prediction {self.setting.prediction} --policy round-robin,RUN "
            f"--seed {self.seeds[0]} --out DIR"
        )


def main_run(context: Context) -> MainRun:
    """Simulates what is not kept yet, a seed of all policies at a time."""
    main = setting(context.requests(REQUESTS))
    found, missing = entrants(context, POLICIES)
    runs: dict[str, list[Numbers]] = {each.name: [] for each in found}
    for seed in context.seeds:
        keys = {each.name: _key(main, each, seed) for each in found}
        if new := [each for each in found if context.store.find(keys[each.name]) is None]:
            context.report(f"{main.name}, seed {seed:,}: {', '.join(each.name for each in new)}")
            for result in _results(main, new, seed):
                context.store.keep(keys[result.policy], numbers_of(result))
        for name, key in keys.items():
            runs[name].append(cast(Numbers, context.store.find(key)))
    return MainRun(main, context.seeds, runs, missing)


def _key(setting: Setting, policy: Candidate, seed: int) -> dict[str, object]:
    own = {"what": "paper timelines", "version": VERSION, "policy": fingerprint(policy), "seed": seed}
    return {**own, **setting.key()}


def _results(setting: Setting, policies: Sequence[Candidate], seed: int) -> list[RunResult]:
    table = setting.table(seed)
    prediction = predict(table, setting.prediction, seed=seed)
    found: list[RunResult] = []
    for own, group in by_program(setting.fleet, policies):
        runs = simulate(own, table, prediction, [each.policy for each in group], seed=seed)
        found += [dataclasses.replace(run, policy=each.name) for each, run in zip(group, runs, strict=True)]
    return found


def numbers_of(result: RunResult) -> Numbers:
    """A run in numbers, and in series that are short enough to keep."""
    return {**_token_numbers(result), **_wait_numbers(result), **_series(result)}


def _token_numbers(result: RunResult) -> Numbers:
    """Of the requests' average TBT, and of the gaps between an instance's tokens."""
    tbt = metrics.tbt_mean_s(result)
    known = ~np.isnan(tbt)
    arrival = result.table.arrival_s
    early, late = np.quantile(arrival, [1 / 3, 2 / 3])
    gaps = token_gaps(timeline_of(result))
    spikes = gaps.spikes
    return {
        "tbt_mean_s": float(tbt[known].mean()),
        "tbt_sd_s": float(tbt[known].std()),
        "tbt_p99_s": float(np.quantile(tbt[known], 0.99)),
        "tbt_early_s": _mean(tbt[known & (arrival <= early)]),
        "tbt_late_s": _mean(tbt[known & (arrival >= late)]),
        "tbt_quantiles_s": np.quantile(tbt[known], np.linspace(0, 1, QUANTILES)).tolist(),
        "plain_gap_s": gaps.plain_s,
        "spikes": int(spikes.sum()),
        "spikes_per_1000": 1000 * float(spikes.sum()) / max(1, len(spikes)),
        "spike_mean_s": _mean(gaps.gap_s[spikes]),
        "spike_max_s": float(gaps.gap_s[spikes].max(initial=0.0)),
        "spike_time_share": float(gaps.gap_s[spikes].sum()) / max(float(gaps.gap_s.sum()), 1e-9),
    }


def _mean(values: np.ndarray) -> float:
    """NaN of none."""
    return float(values.mean()) if len(values) else float("nan")


def _wait_numbers(result: RunResult) -> Numbers:
    """Of what requests wait for, and of the queues."""
    timeline = timeline_of(result)
    router, instance = metrics.router_wait_s(result), metrics.instance_wait_s(result)
    tokens = result.table.prompt_tokens.sum() + result.table.output_tokens.sum()
    return {
        "router_wait_s": float(router.mean()),
        "router_wait_p99_s": float(np.quantile(router, 0.99)),
        "instance_wait_s": float(instance.mean()),
        "instance_wait_p99_s": float(np.quantile(instance, 0.99)),
        "service_s": float((result.records.finish_s - result.records.start_s).mean()),
        "e2e_s": float(metrics.e2e_s(result).mean()),
        "makespan_s": metrics.makespan_s(result),
        "waiting_mean": float(timeline.waiting.mean()),
        "waiting_max": int(timeline.waiting.max()),
        "router_queue_mean": float(timeline.router_queue.mean()),
        "router_queue_max": int(timeline.router_queue.max()),
        "preemptions": int(result.records.preemptions.sum()),
        "recomputed_share": float(result.records.recomputed_tokens.sum() / tokens),
    }


def _series(result: RunResult) -> Numbers:
    """Queues, and the average TBT by arrival, in bins of time; the longest gap of instance 0 in finer ones."""
    timeline = timeline_of(result)
    end_s = float(timeline.time_s[-1]) + result.dt_s
    bins = np.minimum((timeline.time_s / end_s * SERIES_BINS).astype(int), SERIES_BINS - 1)
    count = np.maximum(np.bincount(bins, minlength=SERIES_BINS), 1)

    def binned(values: np.ndarray) -> list[float]:
        return (np.bincount(bins, weights=values, minlength=SERIES_BINS) / count).tolist()

    gaps = token_gaps(timeline)
    own = gaps.instance == 0
    place = np.minimum((gaps.end_s[own] / end_s * SPIKE_BINS).astype(int), SPIKE_BINS - 1)
    longest, spike = np.zeros(SPIKE_BINS), np.zeros(SPIKE_BINS)
    np.maximum.at(longest, place, gaps.gap_s[own])
    np.maximum.at(spike, place, np.where(gaps.spikes[own], gaps.gap_s[own], 0))
    return {
        "end_s": end_s,
        "router_queue_series": binned(timeline.router_queue),
        "waiting_series": binned(timeline.waiting.mean(axis=1)),
        "running_series": binned(timeline.running.mean(axis=1)),
        "longest_gap_series_s": longest.tolist(),
        "spike_series_s": spike.tolist(),
        "tbt_by_arrival": _by_arrival(result),
    }


def _by_arrival(result: RunResult, bins: int = 40) -> Numbers:
    """Mean of the requests' average TBT by when they arrived."""
    tbt = metrics.tbt_mean_s(result)
    known = np.flatnonzero(~np.isnan(tbt))
    groups = np.array_split(known, min(bins, len(known)))
    return {
        "arrival_s": [float(result.table.arrival_s[group].mean()) for group in groups],
        "mean_s": [float(tbt[group].mean()) for group in groups],
    }
