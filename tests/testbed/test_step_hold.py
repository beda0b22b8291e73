"""How long an engine step is held, by a clock that the tests turn, and what is written down of it."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS, available_profiles, load_profile
from jaxroute.testbed.engine.step_hold import COLUMNS, MOST_CARRIED_S, StepClock, TraceWriter, step_ms, work_of
from jaxroute.testbed.trace import StepTrace, read_trace

LATE_S = 0.0001


class Clock:
    """Time that passes when somebody sleeps, a little too long, or works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds + LATE_S

    def work(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def steps(clock: Clock) -> StepClock:
    return StepClock(clock.now, clock.sleep)


def test_the_step_time_is_the_profiles_to_the_last_bit() -> None:
    draw = random.Random(0)
    profiles = [load_profile(name) for name in available_profiles()]
    for _ in range(2000):
        coefficients = {name: draw.choice([0.0, draw.uniform(0, 20)]) for name in COEFFICIENTS} | {
            "h": draw.random() + 1
        }
        profile = draw.choice([*profiles, dataclasses.replace(profiles[0], coefficients_ms=coefficients)])
        prefills = [(draw.randint(2, 2000), draw.randint(0, 3000)) for _ in range(draw.randint(0, 4))]
        contexts = [draw.randint(2, 4000) for _ in range(draw.randint(0, 100))]
        # The scheduler's own words: new tokens, those in the cache, all known ones; a chunk leaves some for later.
        requests = [(new, kept, new + kept + draw.choice([0, 700])) for new, kept in prefills]
        requests += [(1, context - 1, context) for context in contexts]
        draw.shuffle(requests)
        assert step_ms(profile.coefficients_ms, work_of(requests)) == profile.step_ms(prefills, contexts)


def test_a_request_with_all_but_one_token_computed_decodes() -> None:
    assert work_of([(1, 300, 301)]) == (0, 1, 301, 0, 0)


def test_a_restarted_request_prefills_its_generated_tokens_too() -> None:
    prompt, generated = 200, 57
    assert work_of([(prompt + generated, 0, prompt + generated)]) == (257, 0, 0, 257**2, 0)


def test_chunks_count_what_is_in_the_cache() -> None:
    assert work_of([(256, 0, 400), (144, 256, 400)]) == (400, 0, 0, 256**2 + 144**2, 144 * 256)


def test_a_prompt_of_one_token_is_a_prefill() -> None:
    assert work_of([(1, 0, 1)]) == (1, 0, 0, 1, 0)


def test_a_step_is_held_to_its_time(clock: Clock, steps: StepClock) -> None:
    steps.begin()
    clock.work(0.003)
    held = steps.hold(20.0)
    assert clock.now_s == pytest.approx(100.02 + LATE_S)
    assert held == pytest.approx((100.0, 20.0, 20.1, 0.0, 3.0))


def test_late_awakenings_and_the_time_between_steps_do_not_add_up(clock: Clock, steps: StepClock) -> None:
    for _ in range(1000):
        steps.begin()
        clock.work(0.003)
        held = steps.hold(20.0)
        clock.work(0.0004)
    assert held.start_s == pytest.approx(100 + 999 * 0.02)
    assert held.held_ms == pytest.approx(20.1)
    assert held.late_ms == pytest.approx(0.5)


def test_an_idle_engine_starts_its_next_step_when_work_comes(clock: Clock, steps: StepClock) -> None:
    steps.begin()
    steps.hold(20.0)
    steps.idle()
    clock.work(5.0)
    steps.begin()
    held = steps.hold(20.0)
    assert held.start_s == pytest.approx(105.02 + LATE_S)
    assert held.late_ms == 0


def test_the_next_step_makes_up_for_one_that_overran(clock: Clock, steps: StepClock) -> None:
    steps.begin()
    clock.work(0.024)
    assert steps.hold(20.0).held_ms == pytest.approx(24.0)
    steps.begin()
    held = steps.hold(20.0)
    assert held.late_ms == pytest.approx(4.0)
    assert clock.now_s == pytest.approx(100.04 + LATE_S)


def test_a_long_stall_is_not_made_up_for(clock: Clock, steps: StepClock) -> None:
    steps.begin()
    clock.work(0.5)
    steps.hold(20.0)
    steps.begin()
    held = steps.hold(20.0)
    assert held.late_ms == pytest.approx(1000 * MOST_CARRIED_S)
    assert clock.now_s == pytest.approx(100.5 + 0.02 - MOST_CARRIED_S + LATE_S)


def written(path: Path, clock: Clock, steps: StepClock, work_s: list[float]) -> None:
    writer = TraceWriter(path)
    for index, seconds in enumerate(work_s):
        steps.begin()
        clock.work(seconds)
        writer.write(steps.hold(20.0), work_of([(1, 9, 10), (30, 4, 40)]), (index, 2, 1, 77))
    writer.close()


def test_a_trace_is_read_as_it_was_written(tmp_path: Path, clock: Clock, steps: StepClock) -> None:
    written(tmp_path / "a.csv", clock, steps, [0.003, 0.003, 0.023, 0.003])
    trace = read_trace(tmp_path / "a.csv")
    assert len(trace) == 4
    np.testing.assert_allclose(trace.start_s, [100, 100.02, 100.04, 100.06], atol=1e-6)
    np.testing.assert_allclose(trace.work_ms, [3, 3, 23, 3], atol=1e-3)
    np.testing.assert_allclose(trace.lag_ms, [0.1, 0.1, 3.1, 0.1], atol=1e-3)
    assert trace.waiting.tolist() == [0, 1, 2, 3]
    assert (trace.prefill_tokens[0], trace.decode_seqs[0], trace.context_tokens[0]) == (30, 1, 10)
    assert (trace.prefill_squares[0], trace.prefill_times_kv[0]) == (900, 120)
    assert (trace.running[0], trace.preempted[0], trace.free_blocks[0]) == (2, 1, 77)


def test_the_share_of_overrun_steps_counts_work_that_began_late(tmp_path: Path, clock: Clock, steps: StepClock) -> None:
    written(tmp_path / "a.csv", clock, steps, [0.003, 0.028, 0.015, 0.003])
    trace = read_trace(tmp_path / "a.csv")
    assert trace.overran.tolist() == [False, True, True, False]
    assert trace.overrun_share == 0.5
    assert trace.between(100.05).overrun_share == 0
    assert len(trace.between(100.01, 100.05)) == 2


def test_an_empty_trace_has_no_overrun(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "a.csv").close()
    trace = read_trace(tmp_path / "a.csv")
    assert (len(trace), trace.overrun_share) == (0, 0.0)
    assert trace.waiting.dtype == np.int64


def test_a_line_that_is_still_written_is_left_for_later(tmp_path: Path, clock: Clock, steps: StepClock) -> None:
    path = tmp_path / "a.csv"
    written(path, clock, steps, [0.003, 0.003])
    path.write_text(path.read_text()[:-20])
    assert len(read_trace(path)) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: not the columns of a trace"),
        ("arrival_s\n1\n", "line 1: not the columns of a trace"),
        (",".join(COLUMNS) + "\n1,2\n", f"line 2: must be {len(COLUMNS)} numbers"),
        (",".join(COLUMNS) + "\n" + "x," * 13 + "1\n", f"line 2: must be {len(COLUMNS)} numbers"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_trace(path)


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read"):
        read_trace(tmp_path / "gone.csv")


def test_the_columns_of_the_file_are_those_of_the_reader() -> None:
    assert tuple(field.name for field in dataclasses.fields(StepTrace)) == COLUMNS
