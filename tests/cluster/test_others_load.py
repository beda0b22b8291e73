"""What a router estimates of the others' requests: by hand, the same in NumPy and jax, and against what is there."""

from __future__ import annotations

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_routers import ROUTERS, states_of

from jaxroute.cluster.view import router_view
from jaxroute.observation import INSTANCE_FEATURES, instance_features
from jaxroute.others_load import with_others
from jaxroute.types import RouterView
from views import FIELDS_BY_INSTANCE, view

ESTIMATED = ("in_flight", "in_flight_tokens", "awaiting_first", "awaiting_prompt_tokens", "predicted_tokens_left")


def shared(**changes: object) -> RouterView:
    return view(2, **changes).replace(router=jnp.int32(0))


def test_what_a_server_has_beyond_the_routers_own_is_the_others_and_like_its_own() -> None:
    seen = with_others(
        shared(
            in_flight=[3, 1],
            in_flight_tokens=[600, 100],
            awaiting_first=[2, 0],
            awaiting_prompt_tokens=[200, 0],
            predicted_tokens_left=[90, 30],
            # Eight at the first, two of whom are others' and wait; the second has fewer than the router thinks.
            scraped_running=[4, 0],
            scraped_waiting=[4, 0],
            scraped_kv_usage=[0.8, 0.0],
        ),
        jnp,
    )
    assert seen.in_flight.tolist() == [8, 1]
    assert seen.awaiting_first.tolist() == [2 + 2, 0]
    # Prompts that wait are as long as its own, 100 tokens; those that run are in the KV cache.
    assert seen.awaiting_prompt_tokens.tolist() == [200 + 2 * 100, 0]
    assert seen.in_flight_tokens.tolist() == [800 + 4 * 100, 100]
    assert seen.predicted_tokens_left.tolist() == [90 + 5 * 30, 30]


def test_a_router_with_nothing_in_flight_takes_the_head_for_what_the_others_have() -> None:
    seen = with_others(shared(scraped_running=[2, 0], scraped_waiting=[1, 0], scraped_kv_usage=[0.5, 0.0]), jnp)
    assert seen.in_flight.tolist() == [3, 0]
    assert seen.awaiting_prompt_tokens.tolist() == [100, 0]
    assert seen.in_flight_tokens.tolist() == [500 + 100, 0]
    assert seen.predicted_tokens_left.tolist() == [3 * 45, 0]


def test_the_only_router_counts_what_it_sent() -> None:
    seen = view(2, in_flight=[1, 0], scraped_running=[9, 9])
    assert with_others(seen, jnp) is seen
    together = instance_features(seen.replace(router=jnp.int32(0)), jnp)
    column = INSTANCE_FEATURES.index("requests in flight / max_num_seqs")
    assert (np.asarray(together[:, column]) > np.asarray(instance_features(seen, jnp)[:, column])).all()


@pytest.mark.parametrize("seed", range(3))
def test_numpy_and_jax_estimate_alike(seed: int) -> None:
    rng = np.random.default_rng(seed)
    seen = shared(
        **{name: rng.integers(0, 100, 2) for name in FIELDS_BY_INSTANCE}, scraped_kv_usage=rng.random(2, np.float32)
    )
    plain = instance_features(jax.tree.map(np.asarray, seen), np)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, jax.jit(lambda v: instance_features(v, jnp))(seen), rtol=1e-5, atol=1e-6)


def test_the_estimate_is_near_what_all_routers_have_there() -> None:
    case = cases.random_case(15, scheduler="chunked")
    config = dataclasses.replace(case.config, records=False)
    split = dataclasses.replace(config, routers=ROUTERS)

    @jax.jit
    def views():
        params, workload, states = states_of(case, split, hold=0.0)
        whole = jax.vmap(lambda state: router_view(config, params, workload, state))(states)
        own = jax.vmap(lambda state: router_view(split, params, workload, state))(states)
        return whole, own, jax.vmap(lambda seen: with_others(seen, jnp))(own)

    whole, own, estimated = views()
    busy = np.asarray(whole.in_flight).sum(1) > ROUTERS
    assert busy.sum() > 100
    for name, share in zip(ESTIMATED, (0.05, 0.3, 0.1, 0.45, 0.25), strict=True):
        there, guess = np.asarray(getattr(whole, name))[busy], np.asarray(getattr(estimated, name))[busy]
        missed = np.abs(guess - there).sum() / there.sum()
        alone = np.abs(np.asarray(getattr(own, name))[busy] - there).sum() / there.sum()
        assert missed < share, name
        # Two of three requests are the others'.
        assert alone > 0.6, name
