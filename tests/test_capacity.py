"""The estimated capacity against fleets whose throughput can be worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxroute.capacity import estimate_capacity, requests_needed, sustained_rate
from jaxroute.profiles import COEFFICIENTS, StepProfile, load_profile
from jaxroute.simulate import Fleet
from jaxroute.workload.table import RequestTable

PROMPT, OUTPUT = 100, 6


def profile(max_num_seqs: int = 2, **coefficients_ms: float) -> StepProfile:
    """A server on which every step takes 25 ms, but for the given coefficients."""
    return dataclasses.replace(
        load_profile("v100-32gb-llama2-7b"),
        coefficients_ms={**dict.fromkeys(COEFFICIENTS, 0.0), "W": 25.0, **coefficients_ms},
        max_num_seqs=max_num_seqs,
    )


def constant(count: int) -> RequestTable:
    ones = np.ones(count)
    return RequestTable.create(np.arange(count), PROMPT * ones, OUTPUT * ones, name="constant")


def fleet(*profiles: StepProfile, dt: float = 0.02) -> Fleet:
    return Fleet(profiles, ("prefill-first",) * len(profiles), dt=dt)


def test_one_request_at_a_time_takes_its_prefill_and_decodes() -> None:
    # 6 steps of 25 ms each.
    assert estimate_capacity(fleet(profile(1)), constant(40)) == pytest.approx(1 / 0.150, rel=1e-4)


def test_a_full_batch_shares_its_steps() -> None:
    # Two requests: a prefill of 25 + 10 ms, then 5 decodes of 25 + 2 ms.
    server = profile(2, u=10.0, e=1.0)
    assert estimate_capacity(fleet(server), constant(40)) == pytest.approx(2 / (0.035 + 5 * 0.027), rel=1e-4)


def test_a_slower_instance_adds_less() -> None:
    mixed = fleet(profile(1), profile(1, W=50.0))
    assert estimate_capacity(mixed, constant(90)) == pytest.approx(1 / 0.150 + 1 / 0.300, rel=0.02)


def test_the_router_is_no_limit_to_the_estimate() -> None:
    # 12 servers x 2 / 0.15 s = 160 requests/s, of which a router with dt = 20 ms could send 50.
    servers = (profile(2),) * 12
    table = constant(requests_needed(fleet(*servers)))
    assert len(table) == 480
    assert estimate_capacity(fleet(*servers), table) == pytest.approx(12 * 2 / 0.150, rel=0.02)


def test_arrival_times_do_not_matter() -> None:
    table = constant(40)
    slow = table.replace(arrival_s=1000 * table.arrival_s)
    assert estimate_capacity(fleet(profile(1)), slow) == estimate_capacity(fleet(profile(1)), table)


def test_sustained_rate_leaves_out_both_ends() -> None:
    times = np.concatenate([np.linspace(0, 100, 10), 100 + np.arange(1, 82) / 8, np.linspace(200, 900, 9)])
    assert sustained_rate(np.random.default_rng(0).permutation(times)) == pytest.approx(8.0)
    assert sustained_rate(np.arange(1, 1001) / 5.0) == pytest.approx(5.0)


def test_requests_that_finish_together_count_together() -> None:
    assert sustained_rate(np.repeat(np.arange(1.0, 21.0), 7)) == pytest.approx(7.0)


def test_a_rate_needs_more_than_one_time() -> None:
    assert sustained_rate(np.ones(3)) == np.inf
