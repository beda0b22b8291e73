"""One update of a predictor, compiled; and its probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxroute.predictor.distilbert import LengthPredictor, Logits
from jaxroute.predictor.shape import PredictorConfig
from jaxroute.train.optimiser import lenient
from jaxroute.train.predictor.config import FitConfig
from jaxroute.train.predictor.data import Batch
from jaxroute.train.predictor.network import Params

FINAL_SHARE = 0.02
"""Of the highest learning rate, at the end."""

AVERAGE_DELAY = 10.0
"""The running mean begins as one over about a ninth of the updates so far."""

SECOND_MOMENT = 0.98
"""Decay of Adam's second moment: a training has few updates."""


class FitState(struct.PyTreeNode):
    """A training between two updates.

    Attributes:
      params: weights.
      average: their running mean, which is what predicts; the weights themselves without one.
      optimiser: of optax.
      update: [] int32, updates so far.
      key: typed key; random numbers of an update depend on it and on `update` alone.
    """

    params: Params
    average: Params
    optimiser: optax.OptState
    update: jax.Array
    key: jax.Array


class Losses(NamedTuple):
    """Means over a batch, each [] float32: cross-entropy of the buckets, of the tasks, share of right buckets."""

    bucket: jax.Array
    task: jax.Array
    top1: jax.Array


Inputs = tuple[Any, ...]
"""Arrays: tokens, mask and features; or, with a frozen encoder, vectors and features."""


class Fitter:
    """Compiled functions of one training."""

    def __init__(
        self,
        network: PredictorConfig,
        config: FitConfig,
        updates: int,
        *,
        unknown: int,
        weight: np.ndarray,
        frozen: bool,
    ) -> None:
        """Makes them.

        Args:
          network: sizes.
          config: how it is fitted.
          updates: of the whole training.
          unknown: id of the unknown token.
          weight: [B] float32, of the rows of each bucket.
          frozen: whether the inputs are an encoder's vectors, and only the heads are trained.
        """
        self._config, self._frozen, self._unknown = config, frozen, unknown
        self._model = LengthPredictor(network, config.dropout)
        self._weight = weight
        size = network.buckets
        distance = np.abs(np.arange(size)[:, None] - np.arange(size)[None, :])
        soft = np.exp(-distance / config.ordinal) if config.ordinal else (distance == 0).astype(np.float64)
        self._targets = np.asarray(soft / soft.sum(axis=1, keepdims=True), np.float32)
        self._optimiser = _optimiser(config, updates)
        self.update: Callable[..., tuple[FitState, Losses]] = jax.jit(self._update, donate_argnums=0)
        self.probabilities: Callable[..., tuple[jax.Array, jax.Array]] = jax.jit(self._probabilities)
        self.pool: Callable[..., jax.Array] = jax.jit(self._pool)

    def initial(self, params: Params, seed: int) -> FitState:
        """The state before the first update; of a frozen encoder, `params` are those of the heads."""
        copy = jax.tree.map(jnp.array, params)
        return FitState(params, copy, self._optimiser.init(params), jnp.int32(0), jax.random.key(seed))

    def _update(self, state: FitState, inputs: Inputs, bucket: jax.Array, task: jax.Array) -> tuple[FitState, Losses]:
        """One update on R rows."""
        key_words, key_dropout = jax.random.split(jax.random.fold_in(state.key, state.update))

        def loss_of(params: Params) -> tuple[jax.Array, Losses]:
            logits = self._logits(params, self._without_words(inputs, key_words), key_dropout)
            return self._loss(logits, bucket, task)

        (_, losses), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        change, optimiser = self._optimiser.update(gradient, state.optimiser, state.params)
        params = optax.apply_updates(state.params, change)
        # A short training would otherwise average its first weights in.
        update = state.update.astype(jnp.float32)
        decay = jnp.minimum(self._config.average, update / (update + AVERAGE_DELAY))
        average = jax.tree.map(lambda mean, now: decay * mean + (1 - decay) * now, state.average, params)
        return FitState(params, average, optimiser, state.update + 1, state.key), losses

    def _loss(self, logits: Logits, bucket: jax.Array, task: jax.Array) -> tuple[jax.Array, Losses]:
        targets = jnp.asarray(self._targets)[bucket]
        weight = jnp.asarray(self._weight)[bucket]
        crossed = -jnp.sum(targets * nn.log_softmax(logits.buckets), axis=-1)
        by_bucket = jnp.sum(weight * crossed) / jnp.sum(weight)
        by_task = jnp.float32(0)
        if logits.tasks.shape[-1]:
            by_task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits.tasks, task))
        right = jnp.mean((jnp.argmax(logits.buckets, axis=-1) == bucket).astype(jnp.float32))
        return by_bucket + self._config.task_weight * by_task, Losses(by_bucket, by_task, right)

    def _probabilities(self, params: Params, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """[R, B] of the buckets, [R, K] of the tasks."""
        logits = self._logits(params, inputs, None)
        return nn.softmax(logits.buckets), nn.softmax(logits.tasks)

    def _pool(self, params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """[R, D], what stands for each prompt."""
        return cast(jax.Array, self._model.apply({"params": params}, tokens, mask, method="pool"))

    def _logits(self, params: Params, inputs: Inputs, key: jax.Array | None) -> Logits:
        random: dict[str, Any] = {"deterministic": key is None, "rngs": {} if key is None else {"dropout": key}}
        method = "classify" if self._frozen else None
        return cast(Logits, self._model.apply({"params": params}, *inputs, method=method, **random))

    def _without_words(self, inputs: Inputs, key: jax.Array) -> Inputs:
        """The inputs with some tokens unknown; never the first one."""
        if self._frozen or not self._config.word_dropout:
            return inputs
        tokens, *others = inputs
        dropped = jax.random.bernoulli(key, self._config.word_dropout, tokens.shape).at[:, 0].set(False)
        return (jnp.where(dropped, jnp.asarray(self._unknown, tokens.dtype), tokens), *others)


def inputs_of(batch: Batch, features: np.ndarray, pooled: np.ndarray | None = None) -> Inputs:
    """What the network takes of a batch, with scaled features [R, F], and vectors [R, D] of a frozen encoder."""
    return (batch.tokens, batch.mask, features) if pooled is None else (pooled, features)


def bucket_weights(bucket: np.ndarray, size: int, power: float) -> np.ndarray:
    """[B] float32, the frequency of each bucket among rows [N] to the power of `-power`; of mean 1 over the rows."""
    share = np.bincount(bucket, minlength=size) / len(bucket)
    weight = np.where(share > 0, np.maximum(share, 1 / len(bucket)) ** -power, 0)
    return np.asarray(weight / (share @ weight), np.float32)


def _optimiser(config: FitConfig, updates: int) -> optax.GradientTransformation:
    rate = config.learning_rate
    warmup = min(round(config.warmup * updates), updates - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        rate if warmup == 0 else 0.0, rate, warmup, max(updates, warmup + 1), rate * FINAL_SHARE
    )
    adam = optax.adamw(schedule, b2=SECOND_MOMENT, weight_decay=config.weight_decay, mask=_is_matrix)
    return lenient(optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam))


def _is_matrix(params: Params) -> Params:
    """Kernels and embeddings; not what is added or what scales."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
