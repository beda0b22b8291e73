"""Measurement, reconstruction and fit together, on servers whose profile is known, in virtual time."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from virtual import VirtualServer, run_virtually

from jaxroute.profiles import StepProfile, available_profiles, load_profile
from jaxroute.profiling.design import Budget, Limits
from jaxroute.profiling.reconstruct import Reconstruction
from jaxroute.profiling.result import Result, make_result
from jaxroute.profiling.run import Facts, measure_steps


def limits_of(profile: StepProfile, *, chunked: bool = True) -> Limits:
    return Limits(
        kv_tokens=profile.kv_tokens,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        max_model_len=profile.max_model_len,
        chunked=chunked,
    )


def measured(
    profile: StepProfile, budget: Budget, *, chunked: bool = True, late_ms: float = 0.0, seed: int = 0
) -> tuple[Reconstruction, VirtualServer]:
    server = VirtualServer(profile, chunked=chunked, late_ms=late_ms, seed=seed)
    limits = limits_of(profile, chunked=chunked)
    kept: list[object] = []
    found = run_virtually(lambda: measure_steps(server, limits, budget, kept.extend, lambda done, total: None))
    assert tuple(kept) == found.steps
    return found, server


def fitted(profile: StepProfile, found: Reconstruction) -> Result:
    facts = Facts(
        model="m",
        engine="vLLM test",
        kv_blocks=profile.kv_blocks,
        block_size=profile.block_size,
        max_num_seqs=profile.max_num_seqs,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        max_model_len=profile.max_model_len,
        scheduler="chunked",
        date="2026-11-25",
    )
    return make_result(facts, found.steps, name="fitted", hardware="none", source="test")


def worst_percent(true: StepProfile, got: StepProfile) -> dict[str, float]:
    """Largest error of a step time by regime, over what a server can run."""
    worst = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}
    for new, n, context in itertools.product((0, 20, 100, 400, 1500), (0, 1, 3, 8, 24, 64, 100), (50, 400, 1500)):
        fits = n * context < 0.9 * true.kv_tokens and n < true.max_num_seqs and new + n < true.max_num_batched_tokens
        if not (fits and (new or n)):
            continue
        kind = "mixed" if new and n else "prefill" if new else "decode"
        step = ([(new, 0)] if new else [], [context] * n)
        worst[kind] = max(worst[kind], 100 * abs(got.step_ms(*step) / true.step_ms(*step) - 1))
    return worst


@pytest.mark.parametrize("name", [name for name in available_profiles() if name != "v100-16gb-llama2-7b"])
def test_quick_measurement_without_noise_recovers_every_step_time(name: str) -> None:
    profile = dataclasses.replace(load_profile(name), max_num_batched_tokens=2048)
    found, _ = measured(profile, "quick")
    worst = worst_percent(profile, fitted(profile, found).profile)
    assert max(worst.values()) < 1.0, worst


@pytest.mark.parametrize("name", ["a100-80gb-llama2-7b", "v100-32gb-llama2-7b"])
def test_full_measurement_through_late_tokens_recovers_step_times_within_5_percent(name: str) -> None:
    profile = dataclasses.replace(load_profile(name), max_num_batched_tokens=2048)
    found, _ = measured(profile, "full", late_ms=1.0)
    result = fitted(profile, found)
    worst = worst_percent(profile, result.profile)
    assert max(worst.values()) < 5.0, worst
    assert {error.regime for error in result.errors} == {"prefill", "decode", "mixed"}
    assert all(error.median_percent < 4 for error in result.errors), result.errors
    assert result.profile.frontend_ms == pytest.approx(8.0, abs=2.0)


def test_whole_prompts_are_recovered_and_the_cost_of_cached_tokens_is_said_to_be_unknown() -> None:
    profile = load_profile("a100-80gb-llama2-7b")
    found, _ = measured(profile, "quick", chunked=False, late_ms=0.3)
    result = fitted(profile, found)
    assert max(worst_percent(profile, result.profile).values()) < 5.0
    assert any(remark.startswith("x is not identifiable") for remark in result.fit.remarks)


@pytest.mark.parametrize("chunked", [True, False])
def test_every_reconstructed_step_is_one_that_the_engine_ran(chunked: bool) -> None:
    profile = dataclasses.replace(
        load_profile("a100-80gb-llama2-7b"), max_num_batched_tokens=4096 if not chunked else 1024
    )
    found, server = measured(profile, "quick", chunked=chunked, late_ms=0.2)
    ran = {(tuple(sorted(prefills)), len(decoding), sum(decoding)) for prefills, decoding in server.engine.steps}
    steps = [step for step in found.steps if step.kind in ("decode", "mixed")]
    right = [(tuple(sorted(step.prefills)), step.decoding, step.context_tokens) in ran for step in steps]
    assert len(steps) > 150
    assert np.mean(right) > 0.97
    cut = [step for step in steps if any(cached for _, cached in step.prefills)]
    assert bool(cut) == chunked
    assert found.cut_otherwise == 0


def test_a_wrong_token_budget_shows_in_how_prompts_are_cut() -> None:
    profile = dataclasses.replace(load_profile("a100-80gb-llama2-7b"), max_num_batched_tokens=1024)
    server = VirtualServer(profile)
    limits = dataclasses.replace(limits_of(profile), max_num_batched_tokens=1500)
    found = run_virtually(lambda: measure_steps(server, limits, "quick", lambda steps: None, lambda done, total: None))
    assert found.cut_otherwise > found.cut_as_expected


@pytest.mark.parametrize(
    "limits",
    [
        {"max_num_seqs": 4, "max_num_batched_tokens": 512},
        {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": 512},
        {"kv_blocks": 146},
        {"max_num_seqs": 256, "max_num_batched_tokens": 8192, "max_model_len": 131_072},
    ],
)
def test_small_and_large_servers_are_measured_in_every_regime(limits: dict[str, int]) -> None:
    """With the smallest cache, one measurement in six is 6 to 9 % off in its worst step: so it is judged over seeds."""
    profile = dataclasses.replace(load_profile("a100-80gb-llama2-7b"), **limits)
    worst = []
    for seed in range(5):
        found, _ = measured(profile, "quick", late_ms=0.2, seed=seed)
        result = fitted(profile, found)
        assert {error.regime for error in result.errors} == {"prefill", "decode", "mixed"}
        worst.append(max(worst_percent(profile, result.profile).values()))
    assert np.median(worst) < 3.0
    assert max(worst) < 12.0


def test_nothing_is_ever_preempted_by_the_plan_on_a_small_cache() -> None:
    profile = load_profile("v100-16gb-llama2-7b")
    found, server = measured(profile, "quick")
    held = [sum(contexts) + sum(new + kept for new, kept in prefills) for prefills, contexts in server.engine.steps]
    assert max(held) < profile.kv_tokens
    assert found.steps
