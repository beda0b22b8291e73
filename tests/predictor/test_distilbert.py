"""The Flax encoder computes what torch's does, on random and on real weights, and the heads what they say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference

from jaxroute.errors import InputError
from jaxroute.predictor.distilbert import DistilBert, DistilBertConfig, LengthPredictor, PredictorConfig, pool
from jaxroute.predictor.pretrained import MINILM, Pretrained, load_pretrained
from jaxroute.predictor.weights import from_flax, to_flax

SMALL = DistilBertConfig(vocab_size=200, max_position=40, dim=48, layers=3, heads=4, hidden=96)
HEADS = PredictorConfig(SMALL, buckets=5, tasks=3, features=2, head_hidden=7)


def batch(config: DistilBertConfig, *, rows: int = 4, length: int = 33) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and a mask of rows that are full, shorter, and of one token."""
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length)).astype(np.int32)
    return tokens, np.arange(length) < np.linspace(length, 1, rows).astype(int)[:, None]


def minilm() -> Pretrained:
    try:
        return load_pretrained(MINILM)
    except InputError as error:
        pytest.skip(f"{error}; `make setup-reference` does")


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_random_weights_give_what_torch_gives(layers: int, heads: int) -> None:
    config = DistilBertConfig(vocab_size=200, max_position=40, dim=48, layers=layers, heads=heads, hidden=96)
    model = reference.distilbert(config)
    tokens, mask = batch(config)
    hidden = DistilBert(config).apply(to_flax(reference.tensors_of(model)), tokens, mask)
    assert np.abs(np.asarray(hidden) - reference.states(model, tokens, mask))[mask].max() <= 1e-5


def test_large_random_weights_give_what_torch_gives() -> None:
    model = reference.distilbert(SMALL)
    rng = np.random.default_rng(0)
    tensors = {name: array + rng.normal(0, 0.1, array.shape) for name, array in reference.tensors_of(model).items()}
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    model = reference.distilbert(SMALL, tensors)
    tokens, mask = batch(SMALL)
    expected = reference.states(model, tokens, mask)
    assert np.abs(np.asarray(DistilBert(SMALL).apply(to_flax(tensors), tokens, mask)) - expected)[mask].max() <= 1e-5


def test_minilm_gives_what_torch_gives_as_bert_and_as_distilbert() -> None:
    pretrained = minilm()
    from jaxroute.predictor.pretrained import minilm_folder

    tokens, mask = batch(pretrained.config, length=64)
    hidden = np.asarray(DistilBert(pretrained.config).apply(to_flax(pretrained.tensors), tokens, mask))
    for model in (
        reference.bert(str(minilm_folder())),
        reference.distilbert(pretrained.config, pretrained.tensors),
    ):
        expected = reference.states(model, tokens, mask)
        assert np.abs(expected).max() > 4
        assert np.abs(hidden - expected)[mask].max() <= 1e-5


def test_masked_tokens_change_nothing() -> None:
    tokens, mask = batch(SMALL)
    model = LengthPredictor(HEADS)
    features = jnp.ones((4, 2), jnp.float32)
    variables = model.init(jax.random.key(0), tokens, mask, features)
    others = np.where(mask, tokens, (tokens + 1) % SMALL.vocab_size)
    for pooling in ("cls", "mean"):
        config = PredictorConfig(SMALL, buckets=5, tasks=3, features=2, head_hidden=7, pooling=pooling)
        one, other = (LengthPredictor(config).apply(variables, each, mask, features) for each in (tokens, others))
        np.testing.assert_allclose(one.buckets, other.buckets, atol=1e-6)
        np.testing.assert_allclose(one.tasks, other.tasks, atol=1e-6)


def test_a_prompt_is_its_first_position_or_the_mean_of_all() -> None:
    hidden = jnp.arange(12, dtype=jnp.float32).reshape(2, 3, 2)
    mask = jnp.asarray([[True, True, False], [True, True, True]])
    assert pool(hidden, mask, "cls").tolist() == [[0, 1], [6, 7]]
    assert pool(hidden, mask, "mean").tolist() == [[1, 2], [8, 9]]


def test_pooled_vectors_can_be_kept_where_the_encoder_is_frozen() -> None:
    tokens, mask = batch(SMALL)
    features = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)), jnp.float32)
    model = LengthPredictor(HEADS)
    variables = model.init(jax.random.key(0), tokens, mask, features)
    whole = model.apply(variables, tokens, mask, features)
    kept = model.apply(variables, tokens, mask, method="pool")
    again = model.apply(variables, kept, features, method="classify")
    assert (whole.buckets.shape, whole.tasks.shape, kept.shape) == ((4, 5), (4, 3), (4, 48))
    np.testing.assert_array_equal(whole.buckets, again.buckets)
    np.testing.assert_array_equal(whole.tasks, again.tasks)


def test_without_a_task_head_there_are_no_task_logits() -> None:
    tokens, mask = batch(SMALL)
    features = jnp.zeros((4, 0), jnp.float32)
    model = LengthPredictor(PredictorConfig(SMALL, buckets=5))
    variables = model.init(jax.random.key(0), tokens, mask, features)
    assert model.apply(variables, tokens, mask, features).tasks.shape == (4, 0)
    assert "task_classifier" not in variables["params"]


def test_dropout_is_random_in_training_and_off_otherwise() -> None:
    tokens, mask = batch(SMALL)
    features = jnp.ones((4, 2), jnp.float32)
    model = LengthPredictor(HEADS, dropout=0.3)
    variables = model.init(jax.random.key(0), tokens, mask, features)

    def trained(seed: int) -> np.ndarray:
        rngs = {"dropout": jax.random.key(seed)}
        return np.asarray(model.apply(variables, tokens, mask, features, deterministic=False, rngs=rngs).buckets)

    assert (trained(1) == trained(1)).all()
    assert (trained(1) != trained(2)).any()
    plain = LengthPredictor(HEADS).apply(variables, tokens, mask, features).buckets
    np.testing.assert_array_equal(model.apply(variables, tokens, mask, features).buckets, plain)


def test_a_network_is_mapped_there_and_back() -> None:
    tokens, mask = batch(SMALL)
    variables = LengthPredictor(HEADS).init(jax.random.key(0), tokens, mask, jnp.ones((4, 2), jnp.float32))
    again = to_flax(from_flax(variables))
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_sizes_that_make_no_network_are_refused() -> None:
    with pytest.raises(ValueError, match="dim is 48, which 5 heads do not divide"):
        DistilBertConfig(dim=48, heads=5)
    with pytest.raises(ValueError, match="vocab_size is 0"):
        DistilBertConfig(vocab_size=0)
    with pytest.raises(ValueError, match="buckets must be at least 1"):
        PredictorConfig(SMALL, buckets=0)
    with pytest.raises(ValueError, match="pooling is 'max'"):
        PredictorConfig(SMALL, buckets=2, pooling="max")  # type: ignore[arg-type]
