"""Logs whose servers are known: simulated ones."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np

from jaxroute.output import write_requests_csv
from jaxroute.policies import heuristic
from jaxroute.profiles import COEFFICIENTS, StepProfile, load_profile
from jaxroute.results import RunResult
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

TRUE = dataclasses.replace(load_profile("v100-32gb-llama2-7b"), max_num_seqs=32)
SERVERS = 2


@functools.cache
def simulated(requests: int, rate: float, kv_tokens: int | None = None) -> RunResult:
    """A run of two servers; with few KV tokens it preempts."""
    profile = TRUE if kv_tokens is None else TRUE.with_kv_tokens(kv_tokens)
    table = five_task(requests, rate=rate, seed=1)
    fleet = Fleet((profile,) * SERVERS, ("chunked",) * SERVERS)
    return simulate(fleet, table, predict(table, "oracle", seed=0), [heuristic("round-robin")])[0]


def write_log(result: RunResult, path: Path, *, noise: float = 0.0) -> Path:
    """A requests.csv, each gap of whose times is off by a random share."""
    rng = np.random.default_rng(5)
    first = result.records.first_token_s - result.table.arrival_s
    decode = result.records.finish_s - result.records.first_token_s
    first = first * np.exp(noise * rng.standard_normal(len(first)))
    decode = decode * np.exp(noise * rng.standard_normal(len(decode)))
    records = dataclasses.replace(
        result.records,
        first_token_s=result.table.arrival_s + first,
        finish_s=result.table.arrival_s + first + decode,
    )
    write_requests_csv(dataclasses.replace(result, records=records), path)
    return path


def wrong(profile: StepProfile, share: float = 0.2) -> StepProfile:
    """The profile with each coefficient off by the share, to one side or the other."""
    signs = np.random.default_rng(3).choice([-1, 1], len(COEFFICIENTS))
    times = {n: profile.coefficients_ms[n] * (1 + share * s) for n, s in zip(COEFFICIENTS, signs, strict=True)}
    return dataclasses.replace(profile, coefficients_ms=times)
