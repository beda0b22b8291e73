from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.policies import HEURISTICS, Policy, expand_names, heuristic
from views import view

NAMES = [
    "random",
    "round-robin",
    "join-shortest-queue",
    "fewest-outstanding-tokens",
    "power-of-two",
    "least-kv",
    "vllm-dp",
    "lmetric",
    "min-min",
    "max-capacity",
    "dedicated-small-large",
    "decode-balancer",
    "gated-central-queue",
]


def act(name: str, seen, *, seed: int = 0, state=None) -> int:
    policy = heuristic(name)
    state = policy.initial_state(seen.full.shape[0]) if state is None else state
    return int(policy.act(state, seen, jax.random.key(seed))[0])


def test_all_heuristics_of_the_design_are_there_under_their_names() -> None:
    assert sorted(HEURISTICS) == sorted(NAMES)
    assert all(isinstance(policy, Policy) and hash(policy) is not None for policy in HEURISTICS.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("instances", [1, 2, 5])
def test_an_idle_instance_is_always_given_the_request(name: str, instances: int) -> None:
    assert 0 <= act(name, view(instances)) < instances


@pytest.mark.parametrize("name", NAMES)
def test_a_full_instance_is_never_chosen_and_a_full_fleet_holds(name: str) -> None:
    seen = view(4, full=[True, False, True, True])
    assert all(act(name, seen, seed=seed) in (1, 4) for seed in range(5))
    assert act(name, view(4, full=[True] * 4)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_policies_run_jitted_and_vmapped(name: str) -> None:
    policy = heuristic(name)
    keys = jax.random.split(jax.random.key(0), 6)
    run = jax.jit(jax.vmap(policy.act, in_axes=(None, None, 0)))
    actions, _ = run(policy.initial_state(3), view(3), keys)
    assert actions.shape == (6,)
    assert actions.dtype == jnp.int32
    assert ((actions >= 0) & (actions <= 3)).all()


def test_random_reaches_every_instance_about_equally() -> None:
    keys = jax.random.split(jax.random.key(1), 3000)
    actions, _ = jax.vmap(heuristic("random").act, in_axes=(None, None, 0))((), view(3), keys)
    np.testing.assert_allclose(np.bincount(actions, minlength=4), [1000, 1000, 1000, 0], atol=110)


def test_round_robin_goes_round_by_its_own_count() -> None:
    assert [act("round-robin", view(3, dispatched=count)) for count in range(5)] == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("name", "field", "values", "expected"),
    [
        ("join-shortest-queue", "in_flight", [3, 1, 2], 1),
        ("join-shortest-queue", "in_flight", [2, 1, 1], 1),
        ("fewest-outstanding-tokens", "predicted_tokens_left", [500, 900, 300], 2),
        ("fewest-outstanding-tokens", "awaiting_prompt_tokens", [500, 100, 300], 1),
        ("decode-balancer", "predicted_tokens_left", [500, 900, 300], 2),
        ("least-kv", "scraped_kv_usage", [0.5, 0.2, 0.4], 1),
        ("lmetric", "in_flight", [3, 1, 0], 2),
        ("lmetric", "awaiting_prompt_tokens", [0, 400, 200], 0),
        ("min-min", "awaiting_prompt_tokens", [900, 0, 300], 1),
        ("gated-central-queue", "in_flight_tokens", [500, 300, 400], 1),
    ],
)
def test_the_least_loaded_by_its_own_measure_is_chosen(name: str, field: str, values: list, expected: int) -> None:
    assert act(name, view(3, **{field: values})) == expected


def test_least_kv_breaks_ties_by_requests_in_flight() -> None:
    assert act("least-kv", view(3, scraped_kv_usage=[0.5, 0.2, 0.2], in_flight=[0, 4, 3])) == 2


def test_power_of_two_never_takes_the_worst_of_three() -> None:
    seen = view(3, in_flight=[5, 9, 1])
    chosen = {act("power-of-two", seen, seed=seed) for seed in range(40)}
    assert chosen == {0, 2}


def test_min_min_looks_at_the_servers_speed() -> None:
    """Instance 0 is empty but slow: twice the step time costs more than the other's queue."""
    seen = view(2, awaiting_prompt_tokens=[0, 300])
    step = seen.profile.step
    slow = seen.profile.replace(step=step.replace(W=step.W * jnp.asarray([2.0, 1.0])))
    assert act("min-min", seen.replace(profile=slow)) == 1
    assert act("min-min", seen) == 0


def test_vllm_dp_counts_its_own_dispatches_until_the_next_scrape() -> None:
    policy = heuristic("vllm-dp")
    state = policy.initial_state(2)
    stale = {"scraped_waiting": [0, 0], "scraped_running": [3, 4]}
    actions = []
    for age in (0.0, 0.02, 0.04, 0.0):
        action, state = policy.act(state, view(2, scraped_age=age, **stale), jax.random.key(0))
        actions.append(int(action))
    # 3 against 4; then 3 + 4 against 4; then 7 against 8; a new scrape forgets.
    assert actions == [0, 1, 0, 0]
    action, state = policy.act(state, view(2, scraped_age=0.02, queue_length=0, **stale), jax.random.key(0))
    assert state[0].tolist() == [1, 0], "an empty queue sends nothing, so nothing is added"


def test_dedicated_small_large_splits_by_predicted_decode_time() -> None:
    assert act("dedicated-small-large", view(4, head_predicted_tokens=30, in_flight=[2, 1, 0, 0])) == 1
    assert act("dedicated-small-large", view(4, head_predicted_tokens=300, in_flight=[0, 0, 2, 1])) == 3


def test_max_capacity_holds_when_nothing_fits_and_reads_once_a_second() -> None:
    policy = heuristic("max-capacity")
    state = policy.initial_state(2)
    crowded = view(2, in_flight=[3, 3], in_flight_tokens=[900, 850])
    action, state = policy.act(state, crowded, jax.random.key(0))
    assert int(action) == 2
    emptier = view(2, in_flight=[3, 3], in_flight_tokens=[100, 850])
    seen = []
    for _ in range(51):
        action, state = policy.act(state, emptier, jax.random.key(0))
        seen.append(int(action))
    assert seen[:48] == [2] * 48
    assert seen[-1] == 0


def test_the_gate_holds_above_its_share_of_the_cache_and_above_three_without_a_first_token() -> None:
    full = {"in_flight": [5, 5], "in_flight_tokens": [701, 750]}
    assert act("gated-central-queue", view(2, **full)) == 2
    assert act("gated-central-queue", view(2, in_flight=[5, 5], in_flight_tokens=[700, 750])) == 0
    awaiting = {"in_flight": [5, 5], "in_flight_tokens": [100, 200], "awaiting_first": [4, 3]}
    assert act("gated-central-queue", view(2, **awaiting)) == 1
    huge = view(2, head_prompt_tokens=990, in_flight=[1, 0], in_flight_tokens=[10, 0])
    assert act("gated-central-queue", huge) == 1, "an idle instance takes what no open one could"


def test_names_expand_and_unknown_ones_are_refused() -> None:
    assert expand_names(["all", "random"]) == list(HEURISTICS)
    with pytest.raises(InputError, match="unknown policy 'fastest'; known: random, round-robin"):
        expand_names(["fastest"])
    with pytest.raises(InputError, match="no policy given"):
        expand_names([])
    with pytest.raises(InputError, match="no such file; give a CSV"):
        expand_names(["assigned:nowhere.csv"])
