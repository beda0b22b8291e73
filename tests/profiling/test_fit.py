"""The fit on made-up steps."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS, StepProfile, available_profiles, load_profile
from jaxroute.profiling.client import Server
from jaxroute.profiling.facts import GENERATED, PREEMPTIONS, PREFIX_HITS, PROMPT, RUNNING, WAITING, Metrics
from jaxroute.profiling.fit import fit_coefficients
from jaxroute.profiling.observe import Observation, jitter_ms, observations
from jaxroute.profiling.run import use_warnings
from jaxroute.profiling.steps import CHAIN, DECODE, FIT, TTFT, Step, kind_of


def step_of(profile: StepProfile, prefills: tuple[tuple[int, int], ...], n: int, context: int) -> Step:
    ms = profile.step_ms(list(prefills), [context] * n)
    return Step(FIT, f"context-{context}", kind_of(prefills, n), prefills, n, float(n * context), ms)


def steps_of(profile: StepProfile, *, cached: bool = True) -> list[Step]:
    prompts: list[tuple[tuple[int, int], ...]] = [(), ((20, 0),), ((90, 0),), ((300, 0),), ((900, 0),), ((1800, 0),)]
    prompts += [((120, 0),) * 3, ((500, 0), (400, 0))]
    if cached:
        prompts += [((700, 1800),), ((300, 900),), ((900, 0), (300, 300))]
    grid = itertools.product(prompts, (0, 1, 2, 5, 12, 30, 70), (40, 300, 1200))
    return [step_of(profile, prefills, n, context) for prefills, n, context in grid if prefills or n]


def seen(steps: list[Step], error_ms: float = 0.01) -> list[Observation]:
    return [Observation(step, error_ms) for step in steps]


@pytest.mark.parametrize("name", available_profiles())
def test_exact_times_give_the_coefficients_back(name: str) -> None:
    profile = load_profile(name)
    fit = fit_coefficients(seen(steps_of(profile)))
    for coefficient in COEFFICIENTS:
        true = profile.coefficients_ms[coefficient]
        if coefficient == "W" and profile.coefficients_ms["h"] >= true:
            continue  # It never shows.
        assert fit.coefficients_ms[coefficient] == pytest.approx(true, rel=0.01, abs=1e-4), coefficient


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_wild_times_leave_step_times_within_3_percent(seed: int) -> None:
    profile, rng = load_profile("a100-80gb-llama31-8b"), np.random.default_rng(seed)
    steps = [dataclasses.replace(step, ms=step.ms + rng.normal(0, 0.3)) for step in steps_of(profile)]
    wild = rng.random(len(steps)) < 0.08
    steps = [
        dataclasses.replace(step, ms=step.ms * rng.uniform(1.3, 4)) if is_wild else step
        for step, is_wild in zip(steps, wild, strict=True)
    ]
    fit = fit_coefficients(seen(steps, 0.3))
    fitted = dataclasses.replace(profile, coefficients_ms=fit.coefficients_ms)
    for prefills, n in itertools.product(([], [(60, 0)], [(1200, 0)]), (1, 8, 50)):
        true = profile.step_ms(prefills, [500] * n)
        assert fitted.step_ms(prefills, [500] * n) == pytest.approx(true, rel=0.03)


def test_what_no_step_depends_on_is_said() -> None:
    profile = load_profile("a100-80gb-llama2-7b")
    remarks = fit_coefficients(seen(steps_of(profile, cached=False))).remarks
    assert any(remark.startswith("x is not identifiable") for remark in remarks)
    assert any(remark.startswith("W is not identifiable") for remark in remarks)


def test_a_standard_error_covers_the_coefficient_of_a_noisy_measurement() -> None:
    profile, rng = load_profile("h100-80gb-llama31-8b"), np.random.default_rng(5)
    steps = [dataclasses.replace(step, ms=step.ms + rng.normal(0, 0.2)) for step in steps_of(profile)]
    fit = fit_coefficients(seen(steps, 0.2))
    off = [
        abs(fit.coefficients_ms[name] - profile.coefficients_ms[name]) / fit.standard_error_ms[name]
        for name in COEFFICIENTS
    ]
    assert max(off) < 4
    assert np.median(off) < 2


def test_a_regime_that_was_not_measured_is_named() -> None:
    steps = [step for step in steps_of(load_profile("a100-80gb-llama2-7b")) if step.kind != "mixed"]
    with pytest.raises(InputError, match="no mixed step"):
        fit_coefficients(seen(steps))


def test_a_late_token_does_not_move_the_time_of_its_step() -> None:
    steps = [Step(FIT, "a", DECODE, (), 4, 400.0 + 4 * at, 10.0) for at in range(9)]
    steps[3], steps[4] = dataclasses.replace(steps[3], ms=16.0), dataclasses.replace(steps[4], ms=4.0)
    [observed] = observations(steps)
    assert (observed.step.ms, observed.step.context_tokens) == (10.0, 416.0)
    assert jitter_ms(steps) == 0.0


def test_a_prefill_step_is_a_chain_less_its_first_prompt_alone() -> None:
    alone = [Step(FIT, "p", TTFT, ((800, 0),), 0, 0.0, ms) for ms in (70.0, 70.0, 70.0, 90.0)]
    chain = [Step(FIT, "p", CHAIN, ((800, 0), (50, 0), (30, 0)), 0, 0.0, ms) for ms in (83.0, 83.0, 83.0, 120.0)]
    [observed] = observations([*alone, *chain])
    assert observed.step.kind == "prefill"
    assert observed.step.prefills == ((50, 0), (30, 0))
    assert observed.step.ms == pytest.approx(13.0)


def test_others_on_the_server_preemptions_and_cached_prompts_are_warned_of() -> None:
    def reading(**sums: float) -> Metrics:
        names = {"running": RUNNING, "waiting": WAITING, "prompt": PROMPT, "generated": GENERATED}
        names |= {"preempted": PREEMPTIONS, "hits": PREFIX_HITS}
        return Metrics({full: sums.get(name, 0.0) for name, full in names.items()}, 100, 16, 1)

    server = Server(None, "http://nowhere")  # type: ignore[arg-type]
    server.asked_prompt_tokens, server.asked_output_tokens = 1000, 50
    before = reading(prompt=70, generated=7)
    assert use_warnings(server, before, reading(prompt=1070, generated=57)) == []
    [others] = use_warnings(server, before, reading(prompt=1470, generated=57))
    assert "others used the server meanwhile (400 of their tokens)" in others
    [preempted, hits] = use_warnings(server, before, reading(prompt=1070, generated=57, preempted=2, hits=64))
    assert "2 requests were preempted" in preempted
    assert "64 prompt tokens" in hits
