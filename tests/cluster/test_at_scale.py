"""Whole runs of 2,000 requests and more, on shipped profiles and real arrivals, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import reference as ref
from jaxroute.policies import heuristic
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.workload import fit_to_context, five_task, make_workload
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable


def assert_same(table: RequestTable, profile: StepProfile, scheduler: str, instances: int = 4) -> int:
    """Runs round robin through both; returns the preemptions."""
    fleet = Fleet((profile,) * instances, (scheduler,) * instances)
    [result] = simulate(fleet, table, predict(table, "none", seed=0), [heuristic("round-robin")])
    rows = zip(table.arrival_s, table.prompt_tokens, table.output_tokens, strict=True)
    requests = [ref.RefRequest(float(arrival), int(prompt), int(output)) for arrival, prompt, output in rows]
    limits = ("coefficients_ms", "kv_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens")
    engine = ref.RefInstance(**{name: getattr(profile, name) for name in limits}, scheduler=scheduler, batching="fcfs")
    expected = ref.simulate(
        requests, [engine] * instances, lambda _fleet, _tick, row: row % instances, fleet.dt
    ).records
    own = result.records
    for name in ("first_token_s", "finish_s"):
        ours = getattr(own, name) - table.arrival_s
        theirs = np.asarray([getattr(record, name) for record in expected]) - table.arrival_s
        assert (np.abs(ours - theirs) <= 1e-3).mean() >= 0.995, name
        assert ours.mean() == pytest.approx(theirs.mean(), rel=1e-3)
    preemptions = sum(record.preemptions for record in expected)
    assert own.preemptions.sum() == pytest.approx(preemptions, rel=0.01, abs=1)
    return preemptions


@pytest.mark.parametrize("scheduler", ["prefill-first", "chunked", "whole-prompt"])
@pytest.mark.parametrize("kv_tokens", [3800, 31552])
def test_the_five_task_run_is_that_of_the_reference(scheduler: str, kv_tokens: int) -> None:
    profile = load_profile("v100-32gb-llama2-7b").with_kv_tokens(kv_tokens)
    preemptions = assert_same(five_task(2000, 20.0, seed=11), profile, scheduler)
    assert (preemptions > 1000) == (kv_tokens == 3800)


@pytest.mark.parametrize("scheduler", ["prefill-first", "chunked"])
def test_synthetic_sets_with_heavy_prompts_are_those_of_the_reference(scheduler: str) -> None:
    profile = load_profile("v100-32gb-llama2-7b")
    table = make_workload("lh-hl-random", profile=profile, requests=800, rate=5.0, seed=2)
    assert_same(table, profile, scheduler)


def test_real_arrivals_are_those_of_the_reference(shared_data: Path) -> None:
    profile = load_profile("a100-80gb-llama31-8b")
    trace = shared_data / "traces" / "azure2023_conv.csv"
    table = make_workload(str(trace), profile=profile, requests=4000, rate=24.0)
    table, report = fit_to_context(table, profile.max_model_len, "clip")
    assert report.total == 4000
    assert_same(table, profile, "chunked")
