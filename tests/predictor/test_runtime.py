"""The NumPy network gives what the Flax one gives."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.predictor import runtime
from jaxroute.predictor.distilbert import LengthPredictor
from jaxroute.predictor.runtime import Network, gelu
from jaxroute.predictor.shape import DistilBertConfig, Pooling, PredictorConfig, predictor_shapes
from jaxroute.predictor.tokenizer import Encoded, pad
from jaxroute.predictor.weights import Tensors, to_flax


def config_of(**changes: object) -> PredictorConfig:
    encoder = DistilBertConfig(vocab_size=300, max_position=64, dim=32, layers=2, heads=4, hidden=64)
    config = PredictorConfig(encoder, buckets=5, tasks=3, features=3, head_hidden=8)
    return dataclasses.replace(config, **changes)


def random_weights(config: PredictorConfig, scale: float = 0.3) -> Tensors:
    rng = np.random.default_rng(0)
    shapes = predictor_shapes(config)
    return {name: rng.normal(0, scale, shape).astype(np.float32) for name, shape in shapes.items()}


def random_prompts(lengths: tuple[int, ...]) -> list[Encoded]:
    rng = np.random.default_rng(1)
    return [
        Encoded(rng.integers(0, 300, length).astype(np.int32), rng.random(3).astype(np.float32)) for length in lengths
    ]


def assert_agrees(config: PredictorConfig, weights: Tensors, prompts: list[Encoded]) -> None:
    ours = Network(config, weights)(prompts)
    tokens, mask, features = pad(prompts, 0)
    theirs = LengthPredictor(config).apply(to_flax(weights), tokens, mask, jnp.asarray(features))
    assert ours.buckets.dtype == ours.tasks.dtype == np.float32
    assert ours.buckets.shape == theirs.buckets.shape
    assert np.abs(ours.buckets - np.asarray(theirs.buckets)).max() <= 1e-4
    assert ours.tasks.shape == theirs.tasks.shape
    assert np.abs(ours.tasks - np.asarray(theirs.tasks)).max(initial=0) <= 1e-4


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("lengths", [(64,), (2,), (2, 64, 17, 2, 33)])
def test_numpy_and_flax_agree(pooling: Pooling, layers: int, lengths: tuple[int, ...]) -> None:
    base = config_of(pooling=pooling)
    config = dataclasses.replace(base, encoder=dataclasses.replace(base.encoder, layers=layers))
    assert_agrees(config, random_weights(config), random_prompts(lengths))


@pytest.mark.parametrize("changes", [{"tasks": 0}, {"head_hidden": 0}, {"buckets": 1}])
def test_any_heads_agree(changes: dict[str, object]) -> None:
    config = config_of(**changes)
    assert_agrees(config, random_weights(config), random_prompts((20, 5)))


def test_large_scores_agree() -> None:
    config = config_of()
    weights = random_weights(config)
    query = "distilbert.transformer.layer.0.attention.q_lin.weight"
    assert_agrees(config, weights | {query: 100 * weights[query]}, random_prompts((40, 8)))


def test_a_prompt_gets_the_same_alone_and_in_a_large_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of()
    network = Network(config, random_weights(config))
    prompts = random_prompts(tuple(range(2, 60)))
    together = network(prompts)
    alone = np.concatenate([network([prompt]).buckets for prompt in prompts])
    np.testing.assert_allclose(together.buckets, alone, atol=1e-4)
    monkeypatch.setattr(runtime, "TOKENS_AT_ONCE", 40)
    np.testing.assert_allclose(network(prompts).buckets, alone, atol=1e-4)


def test_the_weights_are_left_as_they_are() -> None:
    config = config_of()
    weights = random_weights(config)
    before = {name: array.copy() for name, array in weights.items()}
    Network(config, weights)(random_prompts((20,)))
    for name, array in before.items():
        np.testing.assert_array_equal(weights[name], array)


def test_gelu_is_the_exact_one() -> None:
    values = np.concatenate([np.linspace(-12, 12, 4001), [0, -0.0, 1e4, -1e4]]).astype(np.float32)
    exact = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in values.tolist()]
    np.testing.assert_allclose(gelu(values.copy()), exact, atol=2e-6, rtol=1e-6)
    near = np.linspace(-1, 1, 2001, dtype=np.float32)
    exact = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in near.tolist()]
    np.testing.assert_allclose(gelu(near.copy()), exact, atol=4e-7)
