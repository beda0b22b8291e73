from __future__ import annotations

import dataclasses
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.observation import (
    CROWDED,
    GLOBAL_FEATURES,
    INSTANCE_FEATURES,
    action_mask,
    instance_features,
    paper_observation,
    rich_observation,
)
from jaxroute.types import RouterView
from views import FIELDS_BY_INSTANCE, view


def random_view(seed: int) -> RouterView:
    rng = np.random.default_rng(seed)
    fields = {name: rng.integers(0, 100, 4) for name in FIELDS_BY_INSTANCE}
    return view(
        4,
        **fields,
        queue_length=rng.integers(0, 9),
        scraped_kv_usage=rng.random(4),
        full=rng.random(4) < 0.3,
        awaiting_by_bucket=rng.integers(0, 9, (4, 5)),
        streaming_by_bucket=rng.integers(0, 9, (4, 5)),
    )


def in_numpy(tree: object) -> object:
    """The view as a server has it: the same fields in NumPy arrays, no pytree."""
    if dataclasses.is_dataclass(tree):
        fields = {field.name: in_numpy(getattr(tree, field.name)) for field in dataclasses.fields(tree)}
        return types.SimpleNamespace(**fields)
    return None if tree is None else np.asarray(tree)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("encode", [rich_observation, paper_observation])
def test_numpy_and_jax_encode_alike(encode, seed: int) -> None:
    seen = random_view(seed)
    plain, traced = encode(in_numpy(seen), np), jax.jit(lambda v: encode(v, jnp))(seen)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, traced, rtol=1e-5, atol=1e-6)


def test_the_numpy_path_imports_no_jax() -> None:
    code = "import sys, jaxroute.observation, jaxroute.impact; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_rows_follow_their_instances() -> None:
    """Permuting the instances permutes the rows and nothing else: no feature depends on the index."""
    seen = random_view(1)
    order = jnp.asarray([2, 0, 3, 1])
    permuted = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim and leaf.shape[0] == 4 else leaf, seen)
    np.testing.assert_allclose(instance_features(permuted, jnp), instance_features(seen, jnp)[order], rtol=1e-6)


def test_features_have_their_names_and_values() -> None:
    seen = view(2, in_flight=[64, 0], in_flight_tokens=[500, 0], awaiting_prompt_tokens=[200, 0], full=[False, True])
    rows = dict(zip(INSTANCE_FEATURES, np.asarray(instance_features(seen, jnp)).T, strict=True))
    np.testing.assert_allclose(rows["requests in flight / max_num_seqs"], [0.5, 0])
    np.testing.assert_allclose(rows["tokens in flight with the head's prompt / KV tokens"], [0.6, 0.1])
    np.testing.assert_allclose(rows["seconds of prefill ahead of the head"], [0.159e-3 * 200, 0], rtol=1e-6)
    np.testing.assert_allclose(rows["full"], [0, 1])
    # max(18.9, 11 + .159 * 64) + 7.5e-4 * 500 + .03 * 64 + 1.5 ms, times 10.
    np.testing.assert_allclose(rows["seconds of a decode step with all in flight, times 10"][0], 0.24971, atol=1e-4)
    assert rich_observation(seen, jnp).shape == (len(GLOBAL_FEATURES) + 2 * len(INSTANCE_FEATURES) + 3,)


def test_what_the_head_adds_is_its_own_latency_and_what_the_others_wait_for_it() -> None:
    profile = {"in_flight": [0, 100], "in_flight_tokens": [0, 1000], "predicted_tokens_left": [0, 2000]}
    seen = view(2, **profile, awaiting_prompt_tokens=[0, 300], head_prompt_tokens=100, head_predicted_tokens=50)
    rows = dict(zip(INSTANCE_FEATURES, np.asarray(instance_features(seen, jnp)).T, strict=True))
    # Alone: its prefill, and 50 steps of W + v + (100 tokens of context) + e.
    alone = 0.159e-3 * 100 + 50 * (18.9 + 1.5 + 0.00075 * 100 + 0.03) / 1000
    # With 100 others, beyond the flat part: 101 sequences; 20 steps that they share grow by g + e + d (100 + 50 / 2).
    own = 0.159e-3 * 400 + 50 * (11 + 0.159 * 101 + 0.00075 * 1100 + 0.03 * 101 + 1.5) / 1000
    theirs = 100 * (0.159e-3 * 100 + 20 * (0.159 + 0.03 + 0.00075 * 125) / 1000)
    added = np.expm1(rows["log of 1 + seconds that the head adds to all latencies"])
    np.testing.assert_allclose(added, [alone, own + theirs], rtol=1e-4)


def test_crowding_is_the_cache_or_the_slowdown_whichever_is_worse() -> None:
    seen = view(2, in_flight=[100, 1], in_flight_tokens=[10, 700], head_prompt_tokens=100)
    rows = dict(zip(INSTANCE_FEATURES, np.asarray(instance_features(seen, jnp)).T, strict=True))
    slow = (11 + 0.159 * 101 + 0.00075 * 110 + 0.03 * 101 + 1.5) / (18.9 + 0.03 + 1.5)
    np.testing.assert_allclose(rows["crowding with the head"], [slow / CROWDED, 0.8], rtol=1e-4)


def test_a_cache_counts_as_full_beyond_nine_tenths() -> None:
    seen = view(3, in_flight=[9, 9, 9], in_flight_tokens=[100, 800, 850], head_prompt_tokens=100)
    rows = dict(zip(INSTANCE_FEATURES, np.asarray(instance_features(seen, jnp)).T, strict=True))
    beyond = rows["share of the KV cache filled with the head's prompt beyond 90 %"]
    np.testing.assert_allclose(beyond, [0, 0, 0.05], atol=1e-6)


def test_the_mask_allows_open_instances_if_there_is_a_request_and_always_hold() -> None:
    assert action_mask(view(3, full=[False, True, False]), np).tolist() == [True, False, True, True]
    assert action_mask(view(3, queue_length=0), np).tolist() == [False, False, False, True]


def test_the_papers_state_is_laid_out_as_documented() -> None:
    seen = view(
        2,
        queue_length=256,
        in_flight_tokens=[250, 0],
        in_flight=[2, 0],
        least_predicted_left=[10, 0],
        awaiting_by_bucket=[[1, 0, 0], [0, 0, 0]],
        streaming_by_bucket=[[0, 1, 0], [0, 0, 0]],
    )
    values = paper_observation(seen, jnp)
    assert values.shape == (3 + 2 * (2 * 3 + 2) + 3,)
    np.testing.assert_allclose(values[:3], [0.5, 0.1, 1.0])
    np.testing.assert_allclose(values[3:9], np.asarray([1, 0, 0, 0, 1, 0]) / 128)
    # A quarter of the cache is taken; ten steps of 18.9 + 1.5 + .1875 + .06 ms.
    np.testing.assert_allclose(values[9:11], [0.75, 0.21], atol=1e-6)
    assert values[-3:].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="needs counts by bucket"):
        paper_observation(view(2), jnp)
