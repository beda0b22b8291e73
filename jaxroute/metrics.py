"""Records of a run -> what a client feels, request by request, and one summary of it.

The per-request functions return [N] float64 columns in seconds, NaN where a request has no such value: a request of one
token has no gap between tokens. Statistics leave NaN out and are NaN themselves where nothing is left. TTFT and E2E
include the `frontend_s` of the instance that served the request; waits and the makespan do not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxroute.results import RunResult

REFERENCE_POLICY = "round-robin"


@dataclasses.dataclass(frozen=True)
class Summary:
    """One run in numbers; times are in seconds, NaN where no request has the quantity.

    Attributes:
      policy: the policy's name.
      workload: the workload's name.
      count: requests served.
      e2e_mean_s: mean end-to-end latency; `e2e_p50_s`, `e2e_p95_s`, `e2e_p99_s` are its percentiles.
      ttft_mean_s: mean time to first token; `ttft_p50_s`, `ttft_p99_s` are its percentiles.
      tbt_mean_s: mean over requests of the request's mean gap between tokens; `tbt_p99_s` is its 99th percentile.
      tbt_max_p99_s: 99th percentile over requests of the request's largest gap.
      router_wait_mean_s: mean time held at the router; `router_wait_p99_s` is its 99th percentile.
      instance_wait_mean_s: mean time from dispatch to the start of the first engine step that ran the request.
      makespan_s: last finish minus first arrival.
      preemptions: preemptions, all requests together.
      recomputed_tokens: computed KV tokens that preemptions threw away, all requests together.
      load_imbalance: most prompt + output tokens that one instance served over the instances' mean; 1 is even.
      throughput_tokens_per_s: output tokens over the makespan.
      action_share: [I] fraction of the requests that each instance got.
    """

    policy: str
    workload: str
    count: int
    e2e_mean_s: float
    e2e_p50_s: float
    e2e_p95_s: float
    e2e_p99_s: float
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    tbt_mean_s: float
    tbt_p99_s: float
    tbt_max_p99_s: float
    router_wait_mean_s: float
    router_wait_p99_s: float
    instance_wait_mean_s: float
    makespan_s: float
    preemptions: int
    recomputed_tokens: int
    load_imbalance: float
    throughput_tokens_per_s: float
    action_share: tuple[float, ...]


def e2e_s(result: RunResult) -> np.ndarray:
    """End-to-end latency, [N] seconds from arrival at the router to the last token at the client."""
    return result.records.finish_s - result.table.arrival_s + _frontend_s(result)


def ttft_s(result: RunResult) -> np.ndarray:
    """Time to first token, [N] seconds from arrival at the router to the first token at the client."""
    return result.records.first_token_s - result.table.arrival_s + _frontend_s(result)


def tbt_mean_s(result: RunResult) -> np.ndarray:
    """Mean time between tokens of each request, [N] seconds; NaN for a request of one token."""
    records = result.records
    gaps = result.table.output_tokens - 1
    return np.where(gaps > 0, (records.finish_s - records.first_token_s) / np.maximum(gaps, 1), np.nan)


def tbt_max_s(result: RunResult) -> np.ndarray:
    """Largest time between two tokens of each request, [N] seconds; NaN for a request of one token."""
    return np.where(result.table.output_tokens > 1, result.records.max_gap_s, np.nan)


def router_wait_s(result: RunResult) -> np.ndarray:
    """Time held at the router, [N] seconds from arrival to dispatch."""
    return result.records.dispatch_s - result.table.arrival_s


def instance_wait_s(result: RunResult) -> np.ndarray:
    """Time in the instance's own queue, [N] seconds from dispatch to the step that first admitted the request."""
    return result.records.start_s - result.records.dispatch_s


def makespan_s(result: RunResult) -> float:
    """Seconds from the first arrival to the last finish."""
    return float(result.records.finish_s.max() - result.table.arrival_s.min())


def action_share(result: RunResult) -> np.ndarray:
    """Fraction of the requests that each instance got, [I]."""
    return np.bincount(result.records.instance, minlength=result.instances) / len(result.table)


def load_imbalance(result: RunResult) -> float:
    """Most prompt + output tokens that one instance served, over the mean of all instances (1 is even, I the worst)."""
    tokens = result.table.prompt_tokens + result.table.output_tokens
    served = np.bincount(result.records.instance, weights=tokens, minlength=result.instances)
    return float(served.max() / served.mean())


def summarise(result: RunResult) -> Summary:
    """The run in numbers."""
    e2e, ttft, tbt = e2e_s(result), ttft_s(result), tbt_mean_s(result)
    router_wait = router_wait_s(result)
    makespan = makespan_s(result)
    return Summary(
        policy=result.policy,
        workload=result.table.name,
        count=len(result.table),
        e2e_mean_s=_mean(e2e),
        e2e_p50_s=_percentile(e2e, 50),
        e2e_p95_s=_percentile(e2e, 95),
        e2e_p99_s=_percentile(e2e, 99),
        ttft_mean_s=_mean(ttft),
        ttft_p50_s=_percentile(ttft, 50),
        ttft_p99_s=_percentile(ttft, 99),
        tbt_mean_s=_mean(tbt),
        tbt_p99_s=_percentile(tbt, 99),
        tbt_max_p99_s=_percentile(tbt_max_s(result), 99),
        router_wait_mean_s=_mean(router_wait),
        router_wait_p99_s=_percentile(router_wait, 99),
        instance_wait_mean_s=_mean(instance_wait_s(result)),
        makespan_s=makespan,
        preemptions=int(result.records.preemptions.sum()),
        recomputed_tokens=int(result.records.recomputed_tokens.sum()),
        load_imbalance=load_imbalance(result),
        throughput_tokens_per_s=float(result.table.output_tokens.sum()) / makespan,
        action_share=tuple(action_share(result).tolist()),
    )


def reference_summary(summaries: Sequence[Summary]) -> Summary:
    """The summary that the others are compared with: round robin's where it is among them, else the first."""
    return next((summary for summary in summaries if summary.policy == REFERENCE_POLICY), summaries[0])


def relative_change_percent(value: float, reference: float) -> float:
    """Change of a value against a reference, in % of it; NaN where the reference is 0 or NaN."""
    return 100.0 * (value - reference) / reference if reference != 0 else float("nan")


def _frontend_s(result: RunResult) -> np.ndarray:
    return result.frontend_s[result.records.instance]


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _percentile(values: np.ndarray, percent: float) -> float:
    known = values[~np.isnan(values)]
    return float(np.percentile(known, percent)) if known.size else float("nan")
