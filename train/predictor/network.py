"""The network that a training starts from: its tokenizer, its sizes, its weights; and back to what is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.errors import InputError
from jaxroute.predictor.distilbert import INITIAL_STD, LengthPredictor
from jaxroute.predictor.hint import hint_of
from jaxroute.predictor.pretrained import load_pretrained
from jaxroute.predictor.prompts import PromptTable
from jaxroute.predictor.shape import DistilBertConfig, PredictorConfig
from jaxroute.predictor.tokenizer import FEATURES, PromptTokenizer, prune
from jaxroute.predictor.weights import Tensors, from_flax, to_flax
from jaxroute.train.predictor.config import EncoderConfig, PredictorTrainConfig

Params = Any
"""A pytree of weights."""

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"

SMALLEST_SPREAD = 1e-6
"""Standard deviation below which a value counts as constant."""


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What a training starts from.

    Attributes:
      config: sizes of the network.
      tokenizer: its tokenizer.
      encoder: pretrained weights of the encoder, by Hugging Face names, that take the place of random ones.
    """

    config: PredictorConfig
    tokenizer: PromptTokenizer
    encoder: Tensors = dataclasses.field(repr=False)

    def weights(self, seed: int) -> Params:
        """The initial weights."""
        network = LengthPredictor(self.config)
        token = np.zeros((1, 2), np.int32)
        features = np.zeros((1, self.config.features), np.float32)
        params = jax.jit(network.init)(jax.random.key(seed), token, np.ones((1, 2), bool), features)["params"]
        given = to_flax(self.encoder)["params"]
        return {**params, "distilbert": _replaced(params["distilbert"], given)}


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """What the heads are trained on instead of a value: `(value - mean) * factor`; `folded` takes it back.

    Attributes:
      mean, factor: [F] or [D] float32.
    """

    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, deviation: float) -> Scales:
        """Those that give training values [N, F] this standard deviation; a constant one is left alone."""
        spread = values.std(axis=0)
        factor = np.where(spread > SMALLEST_SPREAD, deviation / np.maximum(spread, SMALLEST_SPREAD), 1.0)
        return cls(values.mean(axis=0).astype(np.float32), factor.astype(np.float32))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The values [..., F] that the heads are trained on."""
        return np.asarray((values - self.mean) * self.factor, np.float32)

    def folded(self, layer: Params, first: int) -> Params:
        """The linear layer that takes the plain values and says the same.

        Args:
          layer: kernel [inputs, units] and bias, trained on the scaled ones.
          first: of the layer's inputs, which are the values.
        """
        kernel, bias = (np.array(layer[part], np.float64) for part in ("kernel", "bias"))
        rows = slice(first, first + len(self.mean))
        kernel[rows] *= self.factor[:, None]
        return {"kernel": kernel.astype(np.float32), "bias": (bias - self.mean @ kernel[rows]).astype(np.float32)}


def plain_weights(params: Params, config: PredictorConfig, features: Scales, vectors: Scales | None) -> Params:
    """The weights of the network that takes plain features and vectors.

    Args:
      params: trained on scaled ones.
      config: sizes.
      features: scales of the numeric features.
      vectors: scales of what stands for a prompt, where the encoder was frozen.
    """
    name = "pre_classifier" if config.head_hidden else "classifier"
    heads = {name: features.folded(params[name], config.encoder.dim)}
    if vectors is not None:
        heads[name] = vectors.folded(heads[name], 0)
        if config.tasks:
            heads["task_classifier"] = vectors.folded(params["task_classifier"], 0)
    return {**params, **heads}


def start_of(config: PredictorTrainConfig, train: PromptTable, tasks: tuple[str, ...], buckets: int) -> Start:
    """Tokenizer and network for training rows.

    Args:
      config: of the training.
      train: its rows; the words that are kept are theirs.
      tasks: names of the K tasks.
      buckets: B.

    Raises:
      InputError: the pretrained encoder cannot be had, or has fewer layers or positions than are asked for.
    """
    wanted = config.encoder
    pretrained = load_pretrained(wanted.pretrained)
    content, tensors = pretrained.tokenizer, pretrained.tensors
    if wanted.vocabulary:
        texts = [*train.prompt, *(hint_of(task) for task in tasks)]
        content, kept = prune(content, texts, wanted.vocabulary)
        tensors = {**tensors, WORDS: tensors[WORDS][kept]}
    tokenizer = PromptTokenizer(
        content, max_tokens=wanted.max_tokens, tail_tokens=wanted.tail_tokens, place=wanted.pretrained
    )
    encoder, given = _encoder(wanted, pretrained.config, tensors, tokenizer.vocab_size)
    network = PredictorConfig(
        encoder=encoder,
        buckets=buckets,
        tasks=len(tasks) if config.fit.task_weight else 0,
        features=len(FEATURES),
        pooling=wanted.pooling,
        head_hidden=wanted.head_hidden,
    )
    return Start(network, tokenizer, given)


def hugging_face(params: Params) -> Tensors:
    """The weights by their Hugging Face names."""
    return from_flax({"params": params})


def _encoder(
    wanted: EncoderConfig, full: DistilBertConfig, tensors: Tensors, words: int
) -> tuple[DistilBertConfig, Tensors]:
    """Sizes of the encoder, and those of its weights that are not random."""
    if wanted.start != "layers":
        sizes = DistilBertConfig(words, wanted.max_tokens, wanted.dim, wanted.layers, wanted.heads, wanted.hidden)
        return sizes, {WORDS: _main_directions(tensors[WORDS], wanted.dim)} if wanted.start == "words" else {}
    for name, asked, there in (
        ("layers", wanted.layers, full.layers),
        ("max_tokens", wanted.max_tokens, full.max_position),
    ):
        if asked > there:
            raise InputError(f"encoder.{name} is {asked}, but {wanted.pretrained} has {there}; ask for at most that")
    sizes = dataclasses.replace(full, vocab_size=words, max_position=wanted.max_tokens, layers=wanted.layers)
    beyond = {f"transformer.layer.{number}." for number in range(wanted.layers, full.layers)}
    given = {name: array for name, array in tensors.items() if not name.startswith(tuple(beyond))}
    return sizes, {**given, POSITIONS: given[POSITIONS][: wanted.max_tokens]}


def _main_directions(words: np.ndarray, dim: int) -> np.ndarray:
    """[V, dim] float32, the word embeddings along their `dim` main directions, as spread as random ones would be.

    Where there are fewer directions than that, the rest is 0.
    """
    centred = words.astype(np.float64) - words.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    projected = centred @ directions[:, ::-1][:, :dim]
    projected = np.pad(projected, ((0, 0), (0, dim - projected.shape[1])))
    return np.asarray(projected * (INITIAL_STD / projected.std()), np.float32)


def _replaced(params: Params, given: Params) -> Params:
    """The weights with those in their place that are given."""
    if not isinstance(given, dict):
        return jnp.asarray(given, jnp.float32)
    return {name: _replaced(value, given[name]) if name in given else value for name, value in params.items()}
