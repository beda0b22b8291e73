"""The JAX simulator against the plain-Python one, request by request, over random fleets and workloads."""

from __future__ import annotations

import dataclasses

import cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reference as ref
from jaxroute.policies import heuristic
from jaxroute.results import RequestRecords, Timeline

BATCHING = ("fcfs", "least-work-left", "bin-packing")
SEEDS = st.integers(0, 2**32 - 1)
TOLERANCE_S = 1e-3
quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_same_requests(records: RequestRecords, expected: ref.RefResult, arrival_s: np.ndarray) -> None:
    """TTFT and E2E within 1 ms for 99.5 % of the requests, means within 0.1 %, and the same counts for each."""
    for name in ("dispatch_s", "start_s", "first_token_s", "finish_s", "max_gap_s"):
        own, reference = getattr(records, name), _column(expected, name)
        close = np.abs(own - reference) <= TOLERANCE_S
        assert close.mean() >= 0.995, f"{name}: {np.flatnonzero(~close)[:5]} {own[~close][:5]} {reference[~close][:5]}"
    for name in ("first_token_s", "finish_s"):
        own, reference = getattr(records, name) - arrival_s, _column(expected, name) - arrival_s
        assert own.mean() == pytest.approx(reference.mean(), rel=1e-3)
    for name in ("instance", "preemptions", "recomputed_tokens"):
        assert getattr(records, name).tolist() == _column(expected, name).tolist(), name


def assert_same_events(records: RequestRecords, timeline: Timeline, expected: ref.RefResult) -> None:
    """The same engine steps at each instance, and its requests get their tokens in the same order."""
    for instance, (events, steps) in enumerate(zip(expected.events, expected.steps, strict=True)):
        here = timeline.step_instance == instance
        assert int(here.sum()) == len(steps)
        if not steps:
            continue
        start, duration, prefill, decode, preempted, _ = (np.asarray(column) for column in zip(*steps, strict=True))
        np.testing.assert_allclose(timeline.step_start_s[here], start, atol=TOLERANCE_S)
        np.testing.assert_allclose(timeline.step_duration_s[here], duration, atol=TOLERANCE_S)
        assert timeline.step_prefill_tokens[here].tolist() == prefill.tolist()
        assert timeline.step_decode_seqs[here].tolist() == decode.tolist()
        assert timeline.step_preemptions[here].tolist() == preempted.tolist()
        for kind, column in (("first", records.first_token_s), ("finish", records.finish_s)):
            order = [request for event, request, _ in events if event == kind]
            # Several requests get their token at the same step's end, in no order: their times must ascend.
            assert (np.diff(column[order]) > -TOLERANCE_S).all()


def assert_as_in_the_reference(case: cases.Case) -> None:
    expected = cases.run_reference(case)
    _, records, timeline = cases.run_jax(case)
    assert_same_requests(records, expected, case.table.arrival_s)
    assert_same_events(records, timeline, expected)


@pytest.mark.parametrize("batching", BATCHING)
@given(seed=SEEDS)
@quick
def test_random_fleets_run_as_in_the_reference(batching: str, seed: int) -> None:
    assert_as_in_the_reference(cases.random_case(seed, batching))


@given(seed=SEEDS, budget=st.integers(8, 70))
@quick
def test_prompts_cut_into_chunks_run_as_in_the_reference(seed: int, budget: int) -> None:
    assert_as_in_the_reference(cases.chunk_small(cases.random_case(seed), budget))


@pytest.mark.parametrize("scheduler", cases.SCHEDULERS)
@given(seed=SEEDS)
@quick
def test_starved_fleets_preempt_as_in_the_reference(scheduler: str, seed: int) -> None:
    case = cases.random_case(seed, scheduler=scheduler)
    starved = tuple(
        dataclasses.replace(p, kv_blocks=-(-210 // p.block_size) + 2, max_num_seqs=12) for p in case.profiles
    )
    assert_as_in_the_reference(dataclasses.replace(case, profiles=starved, schedulers=(scheduler,) * cases.INSTANCES))


@pytest.mark.slow
@pytest.mark.parametrize("batching", BATCHING)
def test_many_more_random_fleets_run_as_in_the_reference(batching: str) -> None:
    """A thousand counted cases, the same in every run."""
    for seed in range(1000):
        case = cases.random_case(10_000_000 + seed, batching)
        assert_as_in_the_reference(cases.chunk_small(case, 20 + seed % 50) if seed % 3 == 0 else case)


def test_the_cases_reach_what_they_are_meant_to_reach() -> None:
    """A comparison proves little if nothing is preempted, held or cut: the seeds used here do all of it."""
    preempted = held = stalled = mixed = 0
    for seed in range(60):
        expected = cases.run_reference(cases.chunk_small(cases.random_case(seed), 20 + seed % 50))
        records = expected.records
        preempted += sum(record.preemptions for record in records)
        held += sum(record.start_s > record.dispatch_s + 1e-6 for record in records)
        stalled += sum(record.recomputed_tokens for record in records)
        mixed += sum(prefill > 0 and decode > 0 for steps in expected.steps for _, _, prefill, decode, _, _ in steps)
    assert preempted > 50
    assert held > 200
    assert stalled > 1000
    assert mixed > 200


@pytest.mark.parametrize("seed", range(12))
def test_a_router_that_looks_at_the_fleet_sees_what_the_reference_sees(seed: int) -> None:
    """Join-shortest-queue and the gate decide on counts and tokens in flight: the same decisions, the same run."""
    case = cases.random_case(seed)
    gate = heuristic("gated-central-queue")

    def shortest(fleet: ref.RefFleet, tick: int, index: int) -> int:
        del tick, index
        return min(range(cases.INSTANCES), key=lambda i: (fleet.in_flight(i), i))

    def gated(fleet: ref.RefFleet, tick: int, index: int) -> int | None:
        del tick
        prompt = int(case.table.prompt_tokens[index])
        capacity = [profile.kv_blocks * profile.block_size for profile in case.profiles]
        awaiting = [fleet.awaiting_first(i) for i in range(cases.INSTANCES)]
        is_open = [
            fleet.in_flight(i) == 0
            or (fleet.in_flight_tokens(i) + prompt <= 0.8 * capacity[i] and awaiting[i] <= gate.most_awaiting)  # type: ignore[attr-defined]
            for i in range(cases.INSTANCES)
        ]
        candidates = [i for i in range(cases.INSTANCES) if is_open[i]]
        return min(candidates, key=lambda i: (fleet.in_flight_tokens(i), i)) if candidates else None

    for router, policy in ((shortest, heuristic("join-shortest-queue")), (gated, gate)):
        expected = cases.run_reference(case, router)
        _, records, timeline = cases.run_jax(case, policy)
        assert_same_requests(records, expected, case.table.arrival_s)
        assert_same_events(records, timeline, expected)


def _column(result: ref.RefResult, name: str) -> np.ndarray:
    return np.asarray([getattr(record, name) for record in result.records])
