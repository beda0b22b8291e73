"""The reference simulator against cases worked out by hand.

Unless a test says otherwise a step takes 10 ms plus 1 ms a token, the router has one instance and acts each
millisecond, so that several requests that arrive together are dispatched at 0, 1, 2, ... ms.
"""

import math
import random

import pytest

from reference import RefInstance, RefRequest, RefResult, simulate

ZERO = dict.fromkeys("Whgdefxuv", 0.0)
UNIT = ZERO | {"h": 10.0, "g": 1.0}
SCHEDULERS = ("prefill-first", "chunked", "whole-prompt")
BATCHINGS = ("fcfs", "least-work-left", "bin-packing")
V1 = SCHEDULERS[1:]


def engine(scheduler: str, **changes) -> RefInstance:
    settings = {
        "coefficients_ms": UNIT,
        "kv_blocks": 99,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "scheduler": scheduler,
        "batching": "fcfs",
    }
    return RefInstance(**settings | changes)


def serve(instance: RefInstance, *requests: tuple[float, int, int], dt: float = 0.001) -> RefResult:
    """Serves (arrival in ms, prompt, output) on one instance, without holding any."""
    workload = [RefRequest(arrival / 1000, prompt, output) for arrival, prompt, output in requests]
    return simulate(workload, [instance], lambda fleet, tick, index: 0, dt)


def events(result: RefResult, instance: int = 0) -> list[tuple]:
    """Events with times in whole milliseconds, as all the hand-worked ones are."""
    assert all(abs(t * 1000 - round(t * 1000)) < 1e-6 for _, _, t in result.events[instance])
    return [(kind, request, round(t * 1000)) for kind, request, t in result.events[instance]]


def steps(result: RefResult, instance: int = 0) -> list[tuple]:
    """Steps as (start in ms, prefill tokens, decoding sequences, preemptions, admissions)."""
    return [(round(start * 1000), *counts) for start, _, *counts in result.steps[instance]]


# One request, and the step-time formula


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_lone_request_takes_one_prefill_and_one_step_for_each_further_token(scheduler):
    result = serve(engine(scheduler), (0, 20, 3))
    # Prefill 10 + 20 = 30 ms, then two decode steps of 11 ms.
    assert steps(result) == [(0, 20, 0, 0, 1), (30, 0, 1, 0, 0), (41, 0, 1, 0, 0)]
    assert events(result) == [("admit", 0, 0), ("first", 0, 30), ("finish", 0, 52)]
    (record,) = result.records
    assert (record.instance, record.dispatch_s, record.start_s) == (0, 0.0, 0.0)
    assert (record.first_token_s, record.finish_s) == (pytest.approx(0.030), pytest.approx(0.052))
    assert record.max_gap_s == pytest.approx(0.011)
    assert (record.preemptions, record.recomputed_tokens) == (0, 0)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_one_token_output_ends_with_its_prefill(scheduler):
    result = serve(engine(scheduler), (0, 5, 1), (0, 1, 1))
    # 15 ms for the first; the second came in at 1 ms and runs alone for 11 ms.
    assert events(result) == [
        ("admit", 0, 0), ("first", 0, 15), ("finish", 0, 15),
        ("admit", 1, 15), ("first", 1, 26), ("finish", 1, 26),
    ]  # fmt: skip
    assert [record.max_gap_s for record in result.records] == [0.0, 0.0]


def test_the_step_time_has_all_nine_terms():
    coefficients = {"W": 6, "h": 4.5, "g": 1, "d": 0.1, "e": 0.2, "f": 0.01, "x": 0.001, "u": 0.5, "v": 0.7}
    result = serve(engine("chunked", coefficients_ms=coefficients, max_num_batched_tokens=2), (0, 3, 2))
    # Two tokens of prefill, none cached: max(6, 4.5 + 2) + .01 * 4 + .001 * 0 + .5                      = 7.04
    # Its last one, still prefill, on two cached ones: max(6, 4.5 + 1) + .01 * 1 + .001 * 1 * 2 + .5    = 6.512
    # One decode on three cached tokens: max(6, 4.5 + 1) + .1 * (3 + 1) + .2 * 1 + .7                   = 7.3
    assert [duration for _, duration, *_ in result.steps[0]] == pytest.approx([0.00704, 0.006512, 0.0073])


# Sharing steps


@pytest.mark.parametrize("scheduler", V1)
def test_prefill_and_decode_share_a_step_in_v1(scheduler):
    result = serve(engine(scheduler), (0, 10, 4), (0, 4, 2))
    # 10 + 10; then one decode and 4 of prefill: 15 ms; two decodes: 12 ms; one: 11 ms.
    assert steps(result) == [(0, 10, 0, 0, 1), (20, 4, 1, 0, 1), (35, 0, 2, 0, 0), (47, 0, 1, 0, 0)]
    first, second = result.records
    assert (first.first_token_s, first.finish_s) == (pytest.approx(0.020), pytest.approx(0.058))
    assert (second.first_token_s, second.finish_s) == (pytest.approx(0.035), pytest.approx(0.047))
    # Gaps of the first: 15, 12, 11; of the second: 12.
    assert (first.max_gap_s, second.max_gap_s) == (pytest.approx(0.015), pytest.approx(0.012))


def test_a_prefill_stalls_decodes_in_prefill_first():
    result = serve(engine("prefill-first"), (0, 10, 4), (0, 4, 2))
    # 10 + 10; the second's prefill alone: 14 ms; two decodes: 12 ms; then one at a time: 11 ms.
    assert steps(result) == [(0, 10, 0, 0, 1), (20, 4, 0, 0, 1), (34, 0, 2, 0, 0), (46, 0, 1, 0, 0), (57, 0, 1, 0, 0)]
    first, second = result.records
    assert (first.finish_s, second.finish_s) == (pytest.approx(0.068), pytest.approx(0.046))
    # The first's second token comes at 46 ms, 26 after its first.
    assert (first.max_gap_s, second.max_gap_s) == (pytest.approx(0.026), pytest.approx(0.012))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_no_more_than_max_num_seqs_run(scheduler):
    result = serve(engine(scheduler, max_num_seqs=2), (0, 2, 3), (0, 2, 1), (0, 2, 1))
    # 12 ms; at 12 the second fits and the third does not; the third starts when the second is gone.
    starts = [record.start_s for record in result.records]
    ends = [record.finish_s for record in result.records]
    assert starts == [0.0, pytest.approx(0.012), pytest.approx(ends[1])]


# Token budget


def test_chunked_prefill_takes_what_decodes_leave_of_the_budget():
    result = serve(engine("chunked", max_num_batched_tokens=8), (0, 4, 5), (0, 10, 2))
    # The decode is counted first: chunks of 7 and 3.
    assert steps(result) == [
        (0, 4, 0, 0, 1), (14, 7, 1, 0, 1), (32, 3, 1, 0, 0), (46, 0, 2, 0, 0), (58, 0, 1, 0, 0),
    ]  # fmt: skip
    assert events(result) == [
        ("admit", 0, 0), ("first", 0, 14), ("admit", 1, 14), ("first", 1, 46), ("finish", 1, 58), ("finish", 0, 69),
    ]  # fmt: skip


def test_a_started_prefill_goes_on_before_anything_new_is_admitted():
    result = serve(engine("chunked", max_num_batched_tokens=8), (0, 4, 6), (0, 20, 1), (0, 3, 1))
    # Beside one decode: 7, 7, then the last 6 and one token of the third request, whose other two follow.
    assert steps(result) == [
        (0, 4, 0, 0, 1), (14, 7, 1, 0, 1), (32, 7, 1, 0, 0), (50, 7, 1, 0, 1), (68, 2, 1, 0, 0), (81, 0, 1, 0, 0),
    ]  # fmt: skip
    assert [record.first_token_s for record in result.records] == pytest.approx([0.014, 0.068, 0.081])


def test_a_whole_prompt_that_exceeds_the_rest_of_the_budget_blocks_those_behind_it():
    result = serve(engine("whole-prompt", max_num_batched_tokens=8), (0, 4, 4), (0, 8, 1), (0, 2, 1))
    # One decode leaves 7 < 8 until the first ends at 14 + 3 * 11 = 47; the 8 then leave nothing for the third.
    assert steps(result) == [
        (0, 4, 0, 0, 1), (14, 0, 1, 0, 0), (25, 0, 1, 0, 0), (36, 0, 1, 0, 0), (47, 8, 0, 0, 1), (65, 2, 0, 0, 1),
    ]  # fmt: skip


def test_several_whole_prompts_share_a_step_with_a_decode():
    result = serve(engine("whole-prompt", max_num_batched_tokens=8), (0, 4, 2), (0, 3, 1), (0, 4, 1))
    assert steps(result) == [(0, 4, 0, 0, 1), (14, 7, 1, 0, 2)]  # 1 + 3 + 4 = 8


def test_prefill_first_admits_prompts_up_to_the_budget_in_order():
    result = serve(engine("prefill-first", max_num_batched_tokens=8), (0, 2, 1), (0, 5, 1), (0, 4, 1), (0, 1, 1))
    # 5 leaves 3 < 4, and the last may not overtake.
    assert steps(result) == [(0, 2, 0, 0, 1), (12, 5, 0, 0, 1), (27, 5, 0, 0, 2)]


def test_the_budget_does_not_limit_decodes_in_prefill_first():
    result = serve(engine("prefill-first", max_num_batched_tokens=2), (0, 2, 2), (0, 2, 2), (0, 2, 2))
    assert steps(result) == [(0, 2, 0, 0, 1), (12, 2, 0, 0, 1), (24, 2, 0, 0, 1), (36, 0, 3, 0, 0)]


# KV blocks at admission


@pytest.mark.parametrize(
    ("scheduler", "prompt", "start_s"),
    [
        ("prefill-first", 32, 0.770),  # 10 free - 8 leaves the watermark of 2 (200 blocks)
        ("prefill-first", 33, 0.781),  # 10 free - 9 does not: waits until the first is done
        ("chunked", 36, 0.770),  # no watermark, but the decode took its block first: 9 free, 9 needed
        ("chunked", 37, 0.781),
        ("whole-prompt", 36, 0.770),
        ("whole-prompt", 37, 0.781),
    ],
)
def test_admission_needs_free_blocks_and_a_watermark_in_prefill_first(scheduler, prompt, start_s):
    # 760 tokens are 190 of 200 blocks: 10 + 760 ms; the one decode takes block 191 and 11 ms.
    result = serve(engine(scheduler, kv_blocks=200, max_num_batched_tokens=800), (0, 760, 2), (0, prompt, 1))
    assert result.records[1].start_s == pytest.approx(start_s)


def test_a_chunk_takes_only_its_own_blocks_but_admission_needs_those_of_all_tokens():
    used = {}

    def router(fleet, tick, index):
        used[tick] = fleet.used_blocks(0)
        return None if index == 2 and tick < 60 else 0

    # Budget 5, 4 blocks of 4. From 14 ms the first holds 2; the second needs 3 in all, though its first chunk would
    # take one. It starts when the first is gone, with chunks of 5, 5 and 2 tokens; the third only looks on.
    requests = [RefRequest(0.0, 4, 3), RefRequest(0.0, 12, 1), RefRequest(0.0, 1, 1)]
    result = simulate(requests, [engine("chunked", kv_blocks=4, max_num_batched_tokens=5)], router, 0.001)
    assert steps(result)[:5] == [
        (0, 4, 0, 0, 1), (14, 0, 1, 0, 0), (25, 0, 1, 0, 0), (36, 5, 0, 0, 1), (51, 5, 0, 0, 0),
    ]  # fmt: skip
    assert (used[20], used[40], used[55]) == (2, 2, 3)


# Preemption


def test_the_last_running_request_is_preempted_and_recomputed_as_one_prefill():
    # 4 blocks of 4 tokens. Both hold 2 blocks when the first wants a third at 45 ms (8 tokens cached).
    result = serve(engine("chunked", kv_blocks=4), (0, 6, 5), (0, 6, 5))
    assert steps(result) == [
        (0, 6, 0, 0, 1),
        (16, 6, 1, 0, 1),
        (33, 0, 2, 0, 0),
        (45, 0, 1, 1, 0),
        (56, 0, 1, 0, 0),  # the second needs 2 blocks and finds one
        (67, 8, 0, 0, 1),  # 6 prompt + 2 generated tokens in one prefill, which yields the third token at 85 ms
        (85, 0, 1, 0, 0),
        (96, 0, 1, 0, 0),
    ]
    assert events(result) == [
        ("admit", 0, 0), ("first", 0, 16), ("admit", 1, 16), ("first", 1, 33), ("preempt", 1, 45), ("finish", 0, 67),
        ("admit", 1, 67), ("finish", 1, 107),
    ]  # fmt: skip
    first, second = result.records
    assert (first.preemptions, first.recomputed_tokens) == (0, 0)
    # It had 7 tokens cached; tokens came at 33, 45, 85, 96 and 107 ms; start and first token stay as first stamped.
    assert (second.preemptions, second.recomputed_tokens) == (1, 7)
    assert (second.start_s, second.first_token_s) == (pytest.approx(0.016), pytest.approx(0.033))
    assert second.max_gap_s == pytest.approx(0.040)


def test_generated_tokens_are_prefilled_in_chunks_too_when_recomputed():
    # As above with a budget of 7 and the second's output cut to 3: its 8 known tokens take 7 + 1, all of them prefill.
    result = serve(engine("chunked", kv_blocks=4, max_num_batched_tokens=7), (0, 6, 5), (0, 6, 3))
    assert steps(result)[5:] == [(67, 7, 0, 0, 1), (84, 1, 0, 0, 0)]
    assert result.records[1].finish_s == pytest.approx(0.095)


def test_prefill_first_preempts_while_decoding_and_tries_admission_in_the_next_step():
    result = serve(engine("prefill-first", kv_blocks=4), (0, 6, 5), (0, 6, 5))
    assert steps(result) == [
        (0, 6, 0, 0, 1),
        (16, 6, 0, 0, 1),
        (32, 0, 2, 0, 0),
        (44, 0, 2, 0, 0),  # both have 8 tokens cached
        (56, 0, 1, 1, 0),
        (67, 0, 1, 0, 0),  # 9 known tokens need 3 blocks, one is free
        (78, 9, 0, 0, 1),
        (97, 0, 1, 0, 0),
    ]
    second = result.records[1]
    # Tokens at 32, 44, 56, 97 and 108 ms.
    assert (second.first_token_s, second.finish_s) == (pytest.approx(0.032), pytest.approx(0.108))
    assert (second.max_gap_s, second.recomputed_tokens) == (pytest.approx(0.041), 8)


@pytest.mark.parametrize("scheduler", V1)
def test_the_last_request_preempts_itself(scheduler):
    result = serve(engine(scheduler, kv_blocks=4), (0, 5, 4), (0, 7, 3))
    # At 45 ms the first has room for its 8th token, the second wants a third block for its 9th.
    assert events(result) == [
        ("admit", 0, 0), ("first", 0, 15), ("admit", 1, 15), ("first", 1, 33), ("preempt", 1, 45), ("finish", 0, 56),
        ("admit", 1, 56), ("finish", 1, 75),
    ]  # fmt: skip
    assert steps(result)[3:] == [(45, 0, 1, 1, 0), (56, 9, 0, 0, 1)]
    # Tokens at 33, 45 and 75 ms.
    assert (result.records[1].recomputed_tokens, result.records[1].max_gap_s) == (8, pytest.approx(0.030))


def test_a_half_prefilled_request_can_be_preempted():
    result = serve(engine("chunked", block_size=2, kv_blocks=4, max_num_batched_tokens=2), (0, 2, 4), (0, 4, 1))
    # The second gets one token a step from 12 ms. At 36 the first takes the last block for its 5th token, and the
    # second finds none for its third.
    assert steps(result) == [
        (0, 2, 0, 0, 1), (12, 1, 1, 0, 1), (24, 1, 1, 0, 0), (36, 0, 1, 1, 0), (47, 2, 0, 0, 1), (59, 2, 0, 0, 0),
    ]  # fmt: skip
    second = result.records[1]
    assert (second.start_s, second.first_token_s) == (pytest.approx(0.012), pytest.approx(0.071))
    assert (second.preemptions, second.recomputed_tokens, second.max_gap_s) == (1, 2, 0.0)


def test_of_several_preempted_in_one_step_the_earliest_admitted_resumes_first():
    # 2 + 2 + 1 + 1 = 6 blocks; at 40 ms the first two want their third one, at the cost of the last and the one before.
    result = serve(engine("chunked", kv_blocks=6), (0, 7, 3), (0, 8, 2), (0, 2, 2), (0, 2, 2))
    assert steps(result) == [(0, 7, 0, 0, 1), (17, 12, 1, 0, 3), (40, 0, 2, 2, 0), (52, 6, 0, 0, 2)]
    assert events(result)[8:] == [
        ("preempt", 3, 40), ("preempt", 2, 40), ("finish", 0, 52), ("finish", 1, 52),
        ("admit", 2, 52), ("admit", 3, 52), ("finish", 2, 68), ("finish", 3, 68),
    ]  # fmt: skip


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_preempted_request_blocks_the_new_ones_in_every_batching_order(batching):
    # As in the first preemption test, with a new request of one block from 40 ms: it would fit beside the first in the
    # preempting step (45 ms) and in the next (56), but the preempted one, which does not, is before it.
    requests = (0, 6, 5), (0, 6, 5), (40, 1, 1)
    result = serve(engine("chunked", kv_blocks=4, batching=batching), *requests)
    assert steps(result)[3:6] == [(45, 0, 1, 1, 0), (56, 0, 1, 0, 0), (67, 9, 0, 0, 2)]
    assert events(result)[6:8] == [("admit", 1, 67), ("admit", 2, 67)]


def test_a_preempted_request_may_resume_in_the_very_next_step():
    # The first ends with the preempting step, at 56 ms.
    result = serve(engine("chunked", kv_blocks=4), (0, 6, 4), (0, 6, 5))
    assert steps(result)[3:5] == [(45, 0, 1, 1, 0), (56, 8, 0, 0, 1)]


# Batching order


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("batching", "order"),
    [("fcfs", [0, 1, 2, 3, 4]), ("least-work-left", [0, 2, 3, 4, 1]), ("bin-packing", [0, 1, 4, 2, 3])],
)
def test_batching_orders_the_waiting_queue_only(scheduler, batching, order):
    # One at a time; outputs 7 (already running when the others come), then 5, 2, 2, 3.
    instance = engine(scheduler, max_num_seqs=1, batching=batching)
    result = serve(instance, (0, 5, 7), (0, 1, 5), (0, 9, 2), (0, 1, 2), (0, 1, 3))
    assert [request for kind, request, _ in events(result) if kind == "admit"] == order


@pytest.mark.parametrize(
    ("batching", "starts_ms"),
    [
        # Bin packing skips the second (4 blocks, 3 free), its first, and takes the fourth and the third at 17 ms.
        ("bin-packing", [0, 45, 17, 17]),
        # Least work left takes the third and the fourth first, and stops at the second.
        ("least-work-left", [0, 45, 17, 17]),
        # FCFS stops at the second, until the first has ended with one decode at 28 ms; it leaves one block.
        ("fcfs", [0, 28, 28, 57]),
    ],
)
def test_bin_packing_skips_what_does_not_fit(batching, starts_ms):
    # 5 blocks. Prefills at 17 take 16 ms, two decodes 12 more: 45. FCFS at 28: 16 + 3 prefill tokens, 29 ms: 57.
    instance = engine("prefill-first", kv_blocks=5, batching=batching)
    result = serve(instance, (0, 7, 2), (0, 16, 4), (0, 3, 1), (0, 3, 2))
    assert [record.start_s for record in result.records] == pytest.approx([t / 1000 for t in starts_ms])
    if batching == "bin-packing":
        assert [event for event in events(result) if event[0] == "admit"][1:3] == [("admit", 3, 17), ("admit", 2, 17)]


@pytest.mark.parametrize(("batching", "start_s"), [("least-work-left", 0.028), ("bin-packing", 0.017)])
def test_least_work_left_stops_at_what_does_not_fit(batching, start_s):
    # The second (one output token) wants 4 blocks and 3 are free; the third (two) is after it in one order, before it
    # in the other.
    instance = engine("prefill-first", kv_blocks=5, batching=batching)
    result = serve(instance, (0, 7, 2), (0, 16, 1), (0, 3, 2))
    assert result.records[2].start_s == pytest.approx(start_s)


# The router


def test_a_hold_keeps_the_whole_queue_and_ticks_without_a_queue_are_not_asked():
    calls = []

    def router(fleet, tick, index):
        calls.append((tick, index))
        return None if tick < 3 else 0

    # Half a nanosecond late is in time for tick 30, two nanoseconds are too late for tick 40.
    arrivals = 0.0, 0.0, 0.3 + 5e-10, 0.4 + 2e-9
    result = simulate([RefRequest(t, 4, 1) for t in arrivals], [engine("chunked")], router, 0.01)
    assert calls == [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (30, 2), (41, 3)]
    assert [record.dispatch_s for record in result.records] == pytest.approx([0.03, 0.04, 0.30, 0.41])


def test_requests_are_routed_in_order_of_arrival_and_records_keep_the_given_order():
    result = serve(engine("chunked"), (5, 4, 1), (0, 4, 1))
    assert [record.dispatch_s for record in result.records] == pytest.approx([0.005, 0.0])


def test_a_dispatch_comes_before_a_step_that_ends_at_the_same_time():
    views = []

    def router(fleet, tick, index):
        views.append((fleet.running(0), fleet.waiting(0), fleet.used_blocks(0), fleet.in_flight_tokens(0)))
        return 0

    # The step of the first (10 tokens, 3 blocks, 20 ms) ends at the tick that sees the second.
    requests = [RefRequest(0.0, 10, 3), RefRequest(0.020, 4, 1)]
    result = simulate(requests, [engine("chunked")], router, 0.02)
    assert views == [(0, 0, 0, 0), (1, 0, 3, 10)]
    assert steps(result) == [(0, 10, 0, 0, 1), (20, 4, 1, 0, 1), (35, 0, 1, 0, 0)]


def test_an_idle_engine_starts_at_the_dispatch():
    result = serve(engine("chunked"), (0, 10, 1), (23, 10, 1))
    assert [start for start, *_ in steps(result)] == [0, 23]


def test_the_router_sees_each_instance_as_the_step_in_progress_has_left_it():
    seen = {}

    def router(fleet, tick, index):
        view = fleet.in_flight(0), fleet.running(0), fleet.waiting(0), fleet.used_blocks(0), fleet.in_flight_tokens(0)
        seen[tick] = view
        return None if index == 2 and tick < 70 else 0

    # The first preemption test again; the third request, held, lets the router look on.
    requests = [RefRequest(0.0, 6, 5), RefRequest(0.0, 6, 5), RefRequest(0.0, 1, 1)]
    simulate(requests, [engine("chunked", kv_blocks=4)], router, 0.001)
    assert seen[10] == (2, 1, 1, 2, 12)  # the second waits
    assert seen[20] == (2, 2, 0, 4, 13)  # and runs, beside one token of the first
    assert seen[33] == (2, 2, 0, 4, 13)  # the step that ends now has not ended for the router
    assert seen[34] == (2, 2, 0, 4, 15)
    assert seen[46] == (2, 1, 1, 3, 17)  # the second preempted, its tokens still in flight
    assert seen[68] == (1, 1, 0, 2, 8)  # the first is gone


def test_instances_run_on_their_own():
    instances = [engine("chunked"), engine("prefill-first", coefficients_ms=ZERO | {"W": 7.0})]
    result = simulate([RefRequest(0.0, 4, 2)] * 2, instances, lambda fleet, tick, index: index, 0.001)
    assert events(result, 0) == [("admit", 0, 0), ("first", 0, 14), ("finish", 0, 25)]
    assert events(result, 1) == [("admit", 1, 1), ("first", 1, 8), ("finish", 1, 15)]
    assert [record.instance for record in result.records] == [0, 1]


# Errors


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_prompt_or_an_output_beyond_the_kv_cache_is_a_deadlock(scheduler):
    for prompt, output in (17, 1), (15, 3):  # 4 blocks hold 16 tokens; the last output token needs no KV
        with pytest.raises(ValueError, match="deadlock"):
            serve(engine(scheduler, kv_blocks=4), (0, prompt, output))
    assert math.isfinite(serve(engine(scheduler, kv_blocks=4), (0, 15, 2)).records[0].finish_s)


@pytest.mark.parametrize("scheduler", ["prefill-first", "whole-prompt"])
def test_a_prompt_beyond_the_budget_is_a_deadlock_unless_chunked(scheduler):
    with pytest.raises(ValueError, match="deadlock"):
        serve(engine(scheduler, max_num_batched_tokens=8), (0, 4, 3), (0, 9, 1))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="unknown scheduler"):
        engine("chunky")
    with pytest.raises(ValueError, match="at least one"):
        RefRequest(0.0, 4, 0)
    with pytest.raises(ValueError, match="instance -1"):
        simulate([RefRequest(0.0, 4, 1)], [engine("chunked")], lambda fleet, tick, index: -1, 0.02)


# Invariants


def watched(instances, requests, rng):
    """Runs with random routing and holds; a last request, held until all is done, lets it look at every step."""

    def router(fleet, tick, index):
        ids = range(len(instances))
        for i in ids:
            assert 0 <= fleet.used_blocks(i) <= instances[i].kv_blocks
            assert 0 <= fleet.running(i) <= instances[i].max_num_seqs
            assert fleet.in_flight(i) or not (fleet.used_blocks(i) or fleet.in_flight_tokens(i))
        if index == len(requests) - 1:
            return None if any(map(fleet.in_flight, ids)) else 0
        return rng.choice([None, *ids])

    return simulate(requests, instances, router, 0.001)


def check_steps(instance, rows):
    end_s = 0.0
    for start_s, duration_s, prefill_tokens, decode_seqs, preemptions, admissions in rows:
        assert start_s >= end_s - 1e-9
        assert duration_s == pytest.approx((10 + prefill_tokens + decode_seqs) / 1000)
        assert 0 < prefill_tokens + decode_seqs <= instance.max_num_batched_tokens
        assert not (preemptions and admissions)
        assert instance.scheduler != "prefill-first" or not (prefill_tokens and decode_seqs)
        end_s = start_s + duration_s


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_tokens_are_conserved_limits_hold_and_everything_finishes(scheduler, batching):
    preemptions = 0
    for seed in range(8):
        rng = random.Random(seed)
        # At most 30 + 30 - 1 tokens of KV: always within the budget, and within either cache less its watermark.
        sizes = {"max_num_seqs": 5, "max_num_batched_tokens": 60, "batching": batching}
        instances = [engine(scheduler, block_size=1, kv_blocks=100, **sizes)]
        instances += [engine(scheduler, block_size=4, kv_blocks=16, **sizes)]
        requests = [RefRequest(rng.uniform(0, 0.2), rng.randint(1, 30), rng.randint(1, 30)) for _ in range(16)]
        requests += [RefRequest(9.0, 1, 1)]
        result = watched(instances, requests, rng)
        for i, instance in enumerate(instances):
            check_steps(instance, result.steps[i])
            mine = [k for k, record in enumerate(result.records) if record.instance == i]
            records = [result.records[k] for k in mine]
            # All KV that was ever computed: what each request ends with, and what preemptions threw away.
            computed = sum(row[2] + row[3] for row in result.steps[i])
            kept = sum(requests[k].prompt_tokens + requests[k].output_tokens - 1 for k in mine)
            assert computed == kept + sum(record.recomputed_tokens for record in records)
            kinds = [kind for kind, _, _ in result.events[i]]
            preempted = sum(record.preemptions for record in records)
            assert kinds.count("preempt") == preempted == sum(row[4] for row in result.steps[i])
            assert kinds.count("admit") == len(mine) + preempted == sum(row[5] for row in result.steps[i])
            assert kinds.count("first") == kinds.count("finish") == len(mine)
            times = [t for _, _, t in result.events[i]]
            assert times == sorted(times)
            for k, record in zip(mine, records, strict=True):
                assert requests[k].arrival_s - 1e-9 <= record.dispatch_s <= record.start_s + 1e-9
                assert record.start_s < record.first_token_s <= record.finish_s
                assert record.max_gap_s <= record.finish_s - record.first_token_s + 1e-12
            if batching == "fcfs":
                by_dispatch = sorted(records, key=lambda record: record.dispatch_s)
                assert [r.start_s for r in by_dispatch] == sorted(r.start_s for r in records)
            preemptions += preempted
    assert preemptions > 20
