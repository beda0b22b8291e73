"""The lower bound: its parts against brute force, the whole against the simulator, which it must never exceed."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from cases import INSTANCES, SCHEDULERS, chunk_small, random_case, run_jax

from jaxroute import metrics
from jaxroute.bounds.demand import PREFIXES, demand, sharings
from jaxroute.bounds.lower import lower_bound
from jaxroute.bounds.one_server import serve
from jaxroute.bounds.search import Schedules, Simulator, changed, search
from jaxroute.candidates import candidates
from jaxroute.evaluate import Cell, run_cell
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.progress import interval_limit
from jaxroute.simulate import Fleet
from jaxroute.workload import five_task
from jaxroute.workload.table import RequestTable

ROUNDING = 1 + 1e-5
"""The simulator adds up float32, the bound float64."""


def server(**changes: object) -> StepProfile:
    return dataclasses.replace(load_profile("v100-32gb-llama2-7b"), **changes)  # type: ignore[arg-type]


def one_request(prompt: int, output: int) -> RequestTable:
    return RequestTable.create(np.zeros(1), np.asarray([prompt]), np.asarray([output]), name="one")


def test_a_request_alone_takes_its_prefill_and_its_decodes() -> None:
    profile = server(frontend_ms=7.0)
    bound = lower_bound(one_request(100, 4), Fleet((profile,), ("prefill-first",)))
    by_hand = profile.step_ms([(100, 0)], []) + sum(profile.step_ms([], [100 + y]) for y in (1, 2, 3)) + 7.0
    assert bound.alone_s == pytest.approx(by_hand / 1e3, rel=1e-12)
    assert bound.e2e_mean_s == bound.alone_s


def test_a_request_waits_for_the_router_and_takes_the_fastest_server() -> None:
    slow, fast = load_profile("v100-32gb-llama2-7b"), load_profile("h100-80gb-llama2-7b")
    table = one_request(100, 4).replace(arrival_s=np.asarray([0.005]))
    mixed = lower_bound(table, Fleet((slow, fast), ("chunked",) * 2))
    alone = lower_bound(one_request(100, 4), Fleet((fast,), ("chunked",)))
    assert mixed.alone_s == pytest.approx(0.015 + alone.alone_s, rel=1e-9)


@pytest.mark.parametrize("quadratic", [(2e-3, 1e-3), (1e-3, 5e-3), (0.0, 1e-3)])
def test_no_way_to_cut_a_prompt_is_faster_than_the_bound(quadratic: tuple[float, float]) -> None:
    f, x = quadratic
    coefficients = {**server().coefficients_ms, "f": f, "x": x, "W": 12.0}
    profile = server(coefficients_ms=coefficients, max_num_batched_tokens=128)
    for tokens in (1, 5, 100, 128, 150, 200):
        bound_ms = 1e3 * demand(one_request(tokens, 1), profile, "chunked", next(sharings())).alone_s[0]
        cuts = [
            chunks
            for count in (1, 2, 3)
            for chunks in itertools.product(range(1, 129, 1 if count < 3 else 9), repeat=count - 1)
            if 1 <= tokens - sum(chunks) <= 128
        ]
        for chunks in cuts:
            sizes = np.asarray([*chunks, tokens - sum(chunks)])
            kept = np.concatenate([[0], np.cumsum(sizes)[:-1]])
            time = sum(profile.step_ms([(int(new), int(old))], []) for new, old in zip(sizes, kept, strict=True))
            assert bound_ms <= time * (1 + 1e-12)


def test_the_work_in_a_full_step_is_no_more_than_its_time() -> None:
    profile = server(max_num_seqs=8, kv_blocks=67, block_size=16)
    # As many blocks as these contexts fill.
    contexts = [100, 110, 120, 130, 140, 150, 120, 140]
    for sharing in sharings():
        shares = 0.0
        for context in contexts:
            two = demand(one_request(context - 1, 2), profile, "chunked", sharing)
            shares += two.work_s[0, 0] - two.work_s[0, PREFIXES.index(0.0)]
        assert shares <= profile.step_ms([], contexts) / 1e3 * (1 + 1e-12)


def test_shortest_remaining_work_goes_first() -> None:
    served = serve(np.asarray([0.0, 1.0]), np.asarray([3.0, 1.0]), 1.0, by_remaining=True)
    np.testing.assert_allclose(served.finish_s, [4.0, 2.0])
    np.testing.assert_allclose(served.mean_busy_s, [(0.5 + 2 * 3.0) / 3, 1.5])
    faster = serve(np.asarray([0.0, 0.5]), np.asarray([3.0, 1.0]), 2.0, by_remaining=True)
    np.testing.assert_allclose(faster.finish_s, [2.0, 1.0])


def test_no_order_of_small_pieces_beats_the_relaxed_server() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        release, work = rng.integers(0, 6, 4).astype(float), rng.integers(1, 4, 4).astype(float)
        finish = serve(release, work, 1.0, by_remaining=True).finish_s
        busy = serve(release, work, 1.0, by_remaining=False).mean_busy_s
        for _ in range(60):
            other_finish, other_busy = _random_schedule(release, work, rng)
            assert finish.sum() <= other_finish.sum() + 1e-9
            assert busy.sum() <= other_busy.sum() + 1e-9


def _random_schedule(release: np.ndarray, work: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Serves whole seconds of work in some order."""
    left, finish, moment, now = work.copy(), np.zeros(len(work)), np.zeros(len(work)), 0.0
    while left.any():
        ready = np.flatnonzero((left > 0) & (release <= now))
        if len(ready):
            request = rng.choice(ready)
            left[request] -= 1
            moment[request] += now + 0.5
            finish[request] = now + 1
        now += 1
    return finish, moment / work


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("seed", range(8))
def test_no_random_fleet_beats_the_bound(seed: int, scheduler: str) -> None:
    case = random_case(seed, scheduler=scheduler)
    if scheduler == "chunked" and seed % 2:
        case = chunk_small(case, 24)
    _, records, _ = run_jax(case)
    bound = lower_bound(case.table, Fleet(case.profiles, case.schedulers, dt=case.dt))
    assert 0 < bound.e2e_mean_s <= (records.finish_s - case.table.arrival_s).mean() * ROUNDING


@pytest.mark.parametrize("kv_tokens", [1100, 30000])
def test_no_policy_beats_the_bound(kv_tokens: int) -> None:
    a, b = server(max_num_seqs=16), dataclasses.replace(load_profile("h100-80gb-llama2-7b"), max_num_seqs=16)
    servers = tuple(each.with_kv_tokens(kv_tokens) for each in (a, b))
    tables = tuple(five_task(80, rate, 0).replace(name="five-task") for rate in (1.0, 12.0, 400.0))
    bounded = {}
    for scheduler in SCHEDULERS:
        cell = Cell("five-task", Fleet(servers, (scheduler,) * 2), 1.0, 1.0, (0, 1, 2), tables)
        cell = dataclasses.replace(cell, tables=tuple(_fitting(table, cell.fleet) for table in tables))
        limit = interval_limit(cell.tables, servers, 0.02)
        entered = candidates(["all", "gated-central-queue+spf", "default"])
        for number, result in run_cell(cell, entered, most_intervals=limit):
            table = cell.tables[number]
            bound = bounded.setdefault((scheduler, number), lower_bound(table, cell.fleet))
            assert bound.e2e_mean_s <= metrics.e2e_s(result).mean() * ROUNDING
    # Where all come at once, it is what the fleet can do that binds.
    assert bounded["chunked", 2].e2e_mean_s > 1.2 * bounded["chunked", 2].alone_s
    assert bounded["chunked", 0].e2e_mean_s == bounded["chunked", 0].alone_s


def _fitting(table: RequestTable, fleet: Fleet) -> RequestTable:
    return table.take(table.prompt_tokens + table.output_tokens <= fleet.longest_request)


def tiny() -> tuple[Fleet, RequestTable]:
    profile = server(max_num_seqs=2)
    table = RequestTable.create(
        np.asarray([0.0, 0.0, 0.1, 0.1, 0.2, 0.3]),
        np.asarray([400, 30, 200, 50, 300, 20]),
        np.asarray([12, 3, 8, 20, 4, 6]),
        name="tiny",
    )
    return Fleet(
        (profile, dataclasses.replace(profile, name="other", max_num_seqs=1)), ("prefill-first", "chunked")
    ), table


def test_search_finds_what_trying_all_assignments_does_and_stays_above_the_bound() -> None:
    fleet, table = tiny()
    simulator, count = Simulator(fleet, table), len(table)
    all_of_them = np.asarray(list(itertools.product(range(2), repeat=count)))
    rows = np.broadcast_to(np.arange(count), all_of_them.shape)
    by_arrival = Schedules(rows, all_of_them, np.zeros_like(all_of_them))
    means = simulator.e2e_mean_s(by_arrival)
    bound = lower_bound(table, fleet).e2e_mean_s
    assert bound <= means.min() * ROUNDING
    found = search(simulator, by_arrival.take(np.asarray([0])), seed=0, rounds=12, schedules=64)
    assert found.started_s == means[0]
    assert bound <= found.e2e_mean_s * ROUNDING <= means.min() * ROUNDING**2
    assert simulator.e2e_mean_s(found.schedule)[0] == found.e2e_mean_s
    assert found.simulated == 1 + 12 * 64


def test_a_policys_own_schedule_gives_its_own_latency() -> None:
    fleet, table = tiny()
    cell = Cell("tiny", fleet, 1.0, 1.0, (3,), (table,))
    entered = candidates(["round-robin", "random+spf", "gated-central-queue"])
    runs = [run for _, run in run_cell(cell, entered, most_intervals=interval_limit((table,), fleet.profiles, 0.02))]
    means = Simulator(fleet, table).e2e_mean_s(Schedules.of(runs))
    np.testing.assert_allclose(means, [metrics.e2e_s(run).mean() for run in runs], rtol=1e-6)


def test_changes_keep_a_schedule_whole() -> None:
    start = Schedules(np.arange(10)[None], np.zeros((1, 10), int), np.zeros((1, 10), int))
    after = changed(start.take(np.zeros(50, int)), INSTANCES, np.random.default_rng(0))
    assert (np.sort(after.order, axis=1) == np.arange(10)).all()
    assert set(np.unique(after.instance)) <= set(range(INSTANCES))
    assert (after.not_before >= 0).all()
    assert any((vars(after)[name] != vars(start)[name]).any() for name in vars(start))
    assert not start.instance.any() and (start.order == np.arange(10)).all()
