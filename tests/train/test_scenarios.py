from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.capacity import estimate_capacity, requests_needed
from jaxroute.errors import InputError
from jaxroute.evaluate import FIRST_SEED
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from jaxroute.train import capacities as module
from jaxroute.train.capacities import Kind, capacities
from jaxroute.train.config import FleetsConfig, RewardConfig, TrainConfig, WorkloadsConfig
from jaxroute.train.scenarios import Group, make_groups
from jaxroute.workload.draws import Draws

V100, V100_SMALL, H100 = "v100-32gb-llama2-7b", "v100-16gb-llama2-7b", "h100-80gb-llama2-7b"
CONFIG = TrainConfig(
    seed=3,
    seeds=2,
    fleets=(
        FleetsConfig(instances=2, lanes=3, router_order="shortest-predicted"),
        FleetsConfig(
            instances=3,
            lanes=8,
            profiles=(V100, H100),
            schedulers=("chunked", "prefill-first"),
            mixed=0.5,
            kv_tokens=(0, 4000),
        ),
    ),
    workloads=WorkloadsConfig(
        names=("five-task",), requests=40, tables=2, predictions=("oracle", "none"), scrape_s=(0.1, 0.3)
    ),
    reward=RewardConfig(kind="paper", guidance="constant"),
)
GIVEN_RATE = dataclasses.replace(CONFIG, workloads=dataclasses.replace(CONFIG.workloads, rate=20.0))


@pytest.fixture(scope="module")
def groups() -> tuple[Group, ...]:
    return make_groups(CONFIG)


def test_the_same_configuration_gives_the_same_scenarios(groups: tuple[Group, ...]) -> None:
    again = make_groups(CONFIG)
    for one, other in zip(groups, again, strict=True):
        assert (one.env, one.scenarios) == (other.env, other.scenarios)
        chex.assert_trees_all_equal(one.params, other.params)


def test_every_leaf_has_the_lanes_in_front(groups: tuple[Group, ...]) -> None:
    for group, fleets in zip(groups, CONFIG.fleets, strict=True):
        chex.assert_tree_shape_prefix(group.params, (fleets.lanes,))
        chex.assert_shape(group.params.workloads.prompt_tokens, (fleets.lanes, 2, 40))
        chex.assert_shape(group.params.cluster.instances.kv_blocks, (fleets.lanes, fleets.instances))
        assert group.params.scrape_periods.tolist() == [[5, 15]] * fleets.lanes
        assert group.params.penalty_weight.tolist() == [1.0] * fleets.lanes
        assert group.params.max_steps_in_episode.shape == (fleets.lanes,)
        assert len(group.scenarios) == fleets.lanes


def test_the_arrays_are_those_of_the_fleets(groups: tuple[Group, ...]) -> None:
    for group in groups:
        blocks = [[profile.kv_blocks for profile in each.fleet.profiles] for each in group.scenarios]
        assert group.params.cluster.instances.kv_blocks.tolist() == blocks


def test_the_environment_is_hashable_and_the_same_for_every_seed(groups: tuple[Group, ...]) -> None:
    envs = [group.env for group in groups]
    assert [env.instances for env in envs] == [2, 3]
    assert [env.config.router_order.value for env in envs] == ["shortest-predicted", "fcfs"]
    assert [env.reward for env in envs] == ["paper", "paper"]
    assert [env.config.queue_capacity for env in envs] == [40, 40]
    # An H100 fits more steps into an interval than a V100, even where no lane has drawn one.
    assert [env.config.max_steps_per_interval for env in envs] == [2, 4]
    others = make_groups(dataclasses.replace(GIVEN_RATE, seed=11))
    assert [hash(group.env) for group in others] == [hash(env) for env in envs]
    shapes = [jax.tree.map(jnp.shape, group.params) for group in groups]
    assert [jax.tree.map(jnp.shape, group.params) for group in others] == shapes


def test_choices_are_dealt_evenly_and_mixed_fleets_mix(groups: tuple[Group, ...]) -> None:
    fleets = [scenario.fleet for scenario in groups[1].scenarios]
    kinds = [
        {(profile.name, scheduler) for profile, scheduler in zip(fleet.profiles, fleet.schedulers, strict=True)}
        for fleet in fleets
    ]
    assert sorted(len(kind) > 1 for kind in kinds) == [False] * 4 + [True] * 4
    small = [all(profile.kv_tokens == 4000 for profile in fleet.profiles) for fleet in fleets]
    assert sorted(small) == [False] * 4 + [True] * 4
    assert sorted(scenario.prediction for scenario in groups[1].scenarios) == ["none"] * 4 + ["oracle"] * 4
    assert len({kind for each in kinds for kind in each}) == 4


def test_loads_cover_the_range_and_rates_rise_with_them(groups: tuple[Group, ...]) -> None:
    # The first group has one kind of fleet, so that the load alone decides the rate.
    lanes = sorted(groups[0].scenarios, key=lambda scenario: scenario.load or 0)
    loads = np.asarray([lane.load for lane in lanes])
    edges = np.linspace(0.5, 1.5, 4)
    assert ((edges[:-1] <= loads) & (loads <= edges[1:])).all()
    rates = np.asarray([lane.rate_per_s for lane in lanes])
    np.testing.assert_allclose(rates / loads, rates[0] / loads[0])
    assert rates[0] < rates[1] < rates[2]
    assert all(0.5 <= (lane.load or 0) <= 1.5 for lane in groups[1].scenarios)


def test_tables_come_at_the_rate_of_their_lane(groups: tuple[Group, ...]) -> None:
    for group in groups:
        last_s = np.asarray(group.params.workloads.arrival.step[..., -1]) * 0.02
        expected_s = 40 / np.asarray([lane.rate_per_s for lane in group.scenarios])
        ratio = last_s.mean(-1) / expected_s
        assert ratio.mean() == pytest.approx(1, abs=0.15)
        longest = last_s.max(-1)
        steps = np.asarray(group.params.max_steps_in_episode)
        np.testing.assert_allclose(steps, (3 * longest + 120) / 0.02, atol=4)


def test_no_table_is_played_twice_and_all_seeds_are_for_training() -> None:
    runs = [make_groups(GIVEN_RATE, run) for run in (0, 1)]
    seeds = [seed for run in runs for group in run for lane in group.scenarios for seed in lane.seeds]
    assert len(seeds) == len(set(seeds)) == 2 * 11 * 2
    assert min(seeds) >= 0
    assert max(seeds) < FIRST_SEED
    columns = [
        np.asarray(getattr(group.params.workloads, name)).reshape(-1, 40)
        for run in runs
        for group in run
        for name in ("output_tokens",)
    ]
    assert len(np.unique(np.concatenate(columns), axis=0)) == 44


def test_seeds_near_the_limit_stay_below_it() -> None:
    groups = make_groups(dataclasses.replace(GIVEN_RATE, seed=999_998))
    seeds = [seed for group in groups for lane in group.scenarios for seed in lane.seeds]
    assert len(set(seeds)) == 22
    assert max(seeds) < FIRST_SEED


def test_the_second_run_of_a_seed_is_the_first_of_the_next() -> None:
    one = make_groups(GIVEN_RATE, 1)
    other = make_groups(dataclasses.replace(GIVEN_RATE, seed=4), 0)
    assert [group.scenarios for group in one] == [group.scenarios for group in other]
    chex.assert_trees_all_equal([group.params for group in one], [group.params for group in other])


def test_a_given_rate_needs_no_capacity() -> None:
    groups = make_groups(GIVEN_RATE)
    lanes = [lane for group in groups for lane in group.scenarios]
    assert {(lane.load, lane.rate_per_s) for lane in lanes} == {(None, 20.0)}


def test_edges_put_short_requests_first_whenever_they_come() -> None:
    fleets = (FleetsConfig(instances=2, lanes=2, router_order="shortest-predicted", ageing=0.0, spf_edges=(256,)),)
    [group] = make_groups(dataclasses.replace(GIVEN_RATE, fleets=fleets))
    assert {lane.fleet.spf_edges for lane in group.scenarios} == {(256,)}
    predicted, priority = (
        np.asarray(getattr(group.params.workloads, name)).reshape(-1, 40) for name in ("predicted_tokens", "priority")
    )
    for tokens, rank in zip(predicted, priority, strict=True):
        assert np.argsort(rank).tolist() == np.argsort(tokens >= 256, kind="stable").tolist()


def test_one_compiled_step_serves_all_lanes(groups: tuple[Group, ...]) -> None:
    env, params = groups[1].env, groups[1].params
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(keys: jax.Array, params):  # type: ignore[no-untyped-def]
        _, state = jax.vmap(env.reset)(keys, params)

        def body(state, turn):  # type: ignore[no-untyped-def]
            actions = jnp.full(8, turn % 3)
            _, state, reward, _, _, info = jax.vmap(env.step)(keys, state, actions, params)
            return state, (reward, info["void"])

        return jax.lax.scan(body, state, jnp.arange(100, dtype=jnp.int32))

    state, (reward, void) = run(jax.random.split(jax.random.key(0), 8), params)
    assert not bool(void.any())
    assert bool(jnp.isfinite(reward).all())
    assert (np.asarray(state.cluster.dispatched) > 0).all()
    assert (np.asarray(state.time) == 100).all()


def test_a_short_workload_is_padded_to_the_longest(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{second},{100 + second},{10 + second}" for second in range(30)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    workloads = WorkloadsConfig(names=(str(trace), "five-task"), requests=0, tables=2, rate=5.0)
    fleets = (FleetsConfig(instances=2, lanes=2),)
    [group] = make_groups(TrainConfig(fleets=fleets, workloads=workloads))
    counts = {
        lane.workload: group.params.workloads.num_requests[row].tolist() for row, lane in enumerate(group.scenarios)
    }
    assert counts == {str(trace): [30, 30], "five-task": [2000, 2000]}
    assert group.env.config.queue_capacity == 2000


def test_long_requests_are_clipped_to_the_smallest_server() -> None:
    fleets = (FleetsConfig(instances=2, lanes=4, kv_tokens=(512,)),)
    config = TrainConfig(fleets=fleets, workloads=WorkloadsConfig(requests=200, rate=5.0))
    [group] = make_groups(config)
    tokens = group.params.workloads.prompt_tokens + group.params.workloads.output_tokens
    assert int(tokens.max()) == 513


def test_a_router_that_is_too_slow_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = dataclasses.replace(GIVEN_RATE, workloads=dataclasses.replace(GIVEN_RATE.workloads, rate=70.0))
    with caplog.at_level(logging.WARNING):
        make_groups(config)
    assert "2 instances: five-task brings 70 requests/s" in caplog.text


def test_what_cannot_be_is_refused() -> None:
    many = dataclasses.replace(GIVEN_RATE, workloads=dataclasses.replace(GIVEN_RATE.workloads, tables=100_000))
    with pytest.raises(InputError, match="2,200,000 workload tables need as many seeds, and training has 1,000,000"):
        make_groups(many)
    with pytest.raises(InputError, match="run is 2, must be below seeds = 2"):
        make_groups(GIVEN_RATE, 2)


def five_task_for(fleet: Fleet) -> Draws:
    profile = min(fleet.profiles, key=lambda each: each.kv_tokens)
    limits = (4096, fleet.longest_request)
    return Draws.create("five-task", profile=profile, requests=None, limits=limits, overlong="clip")


@pytest.mark.parametrize(
    ("names", "schedulers"), [((V100, H100), ("chunked", "prefill-first")), ((V100_SMALL, H100), ("chunked",) * 2)]
)
def test_server_capacities_add_up_to_those_of_fleets(names: tuple[str, ...], schedulers: tuple[str, ...]) -> None:
    """Within 5 % of the estimate that evaluations use, whose requests are others (they alone make 2 %)."""
    fleet = Fleet(tuple(load_profile(name) for name in names), schedulers)
    draws = five_task_for(fleet)
    rates = capacities([Kind(*each, draws) for each in zip(fleet.profiles, fleet.schedulers, strict=True)])
    exact = estimate_capacity(fleet, draws.sample(requests_needed(fleet), 1))
    assert rates.sum() == pytest.approx(exact, rel=0.05)
    assert rates[1] > 3 * rates[0]


def test_the_router_is_no_limit_to_a_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first guess that is far too low makes the router too slow; it is measured again with a faster one."""
    profile = dataclasses.replace(load_profile(H100), max_num_seqs=16)
    kind = Kind(profile, "chunked", five_task_for(Fleet((profile,), ("chunked",))))
    [rate] = capacities([kind])
    monkeypatch.setattr(module, "_rough_rate", lambda *_: rate / 40)
    assert capacities([kind])[0] == pytest.approx(rate, rel=0.01)
