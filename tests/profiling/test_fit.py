"""The fit on made-up steps."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS, StepProfile, available_profiles, load_profile
from jaxroute.profiling.client import Server
from jaxroute.profiling.facts import GENERATED, PREEMPTIONS, PREFIX_HITS, PROMPT, RUNNING, WAITING, Metrics
from jaxroute.profiling.fit import fit_coefficients
from jaxroute.profiling.observe import Observation, jitter_ms, observations
from jaxroute.profiling.run import use_warnings
from jaxroute.profiling.steps import CHAIN, DECODE, FIT, MIXED, TTFT, Step, kind_of


def seen_of(profile: StepProfile, prefills: tuple[tuple[int, int], ...], n: int, context: int) -> Observation:
    step = Step(FIT, f"context-{context}", kind_of(prefills, n), prefills, n, float(n * context), 0, 0.0)
    return Observation(step.kind, (step,), profile.step_ms(list(prefills), [context] * n), 0.01)


def all_of(profile: StepProfile, *, cached: bool = True) -> list[Observation]:
    prompts: list[tuple[tuple[int, int], ...]] = [(), ((20, 0),), ((90, 0),), ((300, 0),), ((900, 0),), ((1800, 0),)]
    prompts += [((120, 0),) * 3, ((500, 0), (400, 0))]
    if cached:
        prompts += [((700, 1800),), ((300, 900),), ((900, 0), (300, 300))]
    grid = itertools.product(prompts, (0, 1, 2, 5, 12, 30, 70), (40, 300, 1200))
    return [seen_of(profile, prefills, n, context) for prefills, n, context in grid if prefills or n]


def noisy(seen: list[Observation], error_ms: float, seed: int) -> list[Observation]:
    rng = np.random.default_rng(seed)
    return [dataclasses.replace(each, ms=each.ms + rng.normal(0, error_ms), error_ms=error_ms) for each in seen]


@pytest.mark.parametrize("name", available_profiles())
def test_exact_times_give_the_coefficients_back(name: str) -> None:
    profile = load_profile(name)
    fit = fit_coefficients(all_of(profile))
    for coefficient in COEFFICIENTS:
        true = profile.coefficients_ms[coefficient]
        if coefficient == "W" and profile.coefficients_ms["h"] >= true:
            continue  # It never shows.
        assert fit.coefficients_ms[coefficient] == pytest.approx(true, rel=0.01, abs=1e-4), coefficient


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_wild_times_leave_step_times_within_3_percent(seed: int) -> None:
    profile, rng = load_profile("a100-80gb-llama31-8b"), np.random.default_rng(seed + 100)
    seen = [
        dataclasses.replace(each, ms=each.ms * rng.uniform(1.3, 4)) if rng.random() < 0.08 else each
        for each in noisy(all_of(profile), 0.3, seed)
    ]
    fit = fit_coefficients(seen)
    fitted = dataclasses.replace(profile, coefficients_ms=fit.coefficients_ms)
    for prefills, n in itertools.product(([], [(60, 0)], [(1200, 0)]), (1, 8, 50)):
        true = profile.step_ms(prefills, [500] * n)
        assert fitted.step_ms(prefills, [500] * n) == pytest.approx(true, rel=0.03)


def test_what_no_step_depends_on_is_said() -> None:
    profile = load_profile("a100-80gb-llama2-7b")
    fit = fit_coefficients(all_of(profile, cached=False))
    remarks = fit.remarks
    assert fit.coefficients_ms["x"] == 0
    assert any(remark.startswith("x is not identifiable") for remark in remarks)
    assert any(remark.startswith("W is not identifiable") for remark in remarks)


def test_a_standard_error_covers_the_coefficient_of_a_noisy_measurement() -> None:
    profile = load_profile("h100-80gb-llama31-8b")
    fit = fit_coefficients(noisy(all_of(profile), 0.2, seed=5))
    off = [
        abs(fit.coefficients_ms[name] - profile.coefficients_ms[name]) / fit.standard_error_ms[name]
        for name in COEFFICIENTS
    ]
    assert max(off) < 4
    assert np.median(off) < 2


def test_a_regime_that_was_not_measured_is_named() -> None:
    seen = [each for each in all_of(load_profile("a100-80gb-llama2-7b")) if each.kind != "mixed"]
    with pytest.raises(InputError, match="no mixed step"):
        fit_coefficients(seen)


def decode_steps(numbers: range, begin_ms: float, step_ms: float = 10.0) -> list[Step]:
    return [
        Step(FIT, "a", DECODE, (), 4, 400.0 + 4 * at, at, begin_ms + step_ms * index)
        for index, at in enumerate(numbers)
    ]


def test_a_late_token_and_one_that_came_with_the_next_do_not_move_the_time_of_a_step() -> None:
    steps = decode_steps(range(9), 100.0)
    steps[3] = dataclasses.replace(steps[3], end_ms=steps[3].end_ms + 6)
    steps[5] = dataclasses.replace(steps[5], end_ms=math.nan)
    [seen] = observations(steps)
    assert (seen.kind, seen.ms, seen.steps[0].context_tokens) == (DECODE, pytest.approx(10.0), 416.0)
    assert jitter_ms(steps) == 0.0


def test_steps_with_prompts_are_timed_from_line_to_line_whenever_their_own_tokens_came() -> None:
    prompts = [
        Step(FIT, "a", MIXED, ((800, 0),), 4, 424.0, 6, 190.0),
        Step(FIT, "a", MIXED, ((50, 0),), 4, 428.0, 7, math.nan),
    ]
    # The last decode ended at 150 ms; the first one behind the prompts at 240, of which it took 10 itself.
    steps = [*decode_steps(range(6), 100.0), *prompts, *decode_steps(range(8, 14), 240.0)]
    [mixed] = [each for each in observations(steps) if each.kind == MIXED]
    assert mixed.ms == pytest.approx(80.0)
    assert [step.prefills for step in mixed.steps] == [((800, 0),), ((50, 0),)]
    unknown = [step for step in steps if step.at != 7]
    assert not [each for each in observations(unknown) if each.kind == MIXED]


def test_a_prefill_step_is_a_chain_less_its_first_prompt_alone() -> None:
    alone = [Step(FIT, "p", TTFT, ((800, 0),), 0, 0.0, 0, ms) for ms in (70.0, 70.0, 70.0, 90.0)]
    chain = [Step(FIT, "p", CHAIN, ((800, 0), (50, 0), (30, 0)), 0, 0.0, 0, ms) for ms in (83.0, 83.0, 83.0, 120.0)]
    [seen] = observations([*alone, *chain])
    assert (seen.kind, seen.ms) == ("prefill", pytest.approx(13.0))
    assert seen.steps[0].prefills == ((50, 0), (30, 0))


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
