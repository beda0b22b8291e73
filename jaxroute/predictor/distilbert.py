"""DistilBERT and the heads of the length predictor, in Flax linen.

Our own module, since transformers 5 has no Flax models: equal to torch's `DistilBertModel` to 1e-5 on the same weights
(`weights` maps them both ways). Post-norm, exact gelu, learned positions, no token types; Sanh et al. 2019, arXiv
1910.01108, with the layer layout of transformers' `modeling_distilbert.py`. The names in the parameter tree are the
Hugging Face ones.

Axis letters: R prompts of a batch (rows), L token positions, D units of the encoder, F numeric features, B length
buckets, K tasks. Everything is float32.

    config = PredictorConfig(DistilBertConfig(vocab_size=8000, max_position=64, dim=128, layers=2, heads=2, hidden=512),
                             buckets=5, tasks=5, features=3)
    model = LengthPredictor(config)
    variables = model.init(key, tokens, mask, features)         # [R, L] int32, [R, L] bool, [R, F] float32
    logits = model.apply(variables, tokens, mask, features)     # .buckets [R, B], .tasks [R, K]
    pooled = model.apply(variables, tokens, mask, method="pool")              # [R, D]: may be cached where it is frozen
    logits = model.apply(variables, pooled, features, method="classify")
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxroute.predictor.shape import NORM_EPSILON, DistilBertConfig, Pooling, PredictorConfig

__all__ = ["DistilBert", "DistilBertConfig", "LengthPredictor", "Logits", "PredictorConfig", "pool"]

INITIAL_STD = 0.02
"""Of the normal distribution that untrained weights are drawn from, as in BERT."""


class Logits(NamedTuple):
    """What the heads say of each prompt.

    Attributes:
      buckets: [R, B] float32.
      tasks: [R, K] float32; no columns where there is no task head.
    """

    buckets: jax.Array
    tasks: jax.Array


class DistilBert(nn.Module):
    """The encoder.

    Attributes:
      config: its sizes.
      dropout: rate, behind the embeddings, on the attention weights and behind the feed-forward layers; needs an rng
        named `dropout` where not `deterministic`.
    """

    config: DistilBertConfig
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Hidden states of the last layer.

        Args:
          tokens: [R, L] int32, ids below `vocab_size`; L at most `max_position`.
          mask: [R, L] bool, True where a token is one of the prompt; the states of the others mean nothing.
          deterministic: whether nothing is dropped.

        Returns:
          [R, L, D] float32.
        """
        hidden = _Embeddings(self.config, self.dropout, name="embeddings")(tokens, deterministic)
        for layer in range(self.config.layers):
            hidden = _Layer(self.config, self.dropout, name=f"layer_{layer}")(hidden, mask, deterministic)
        return hidden


class LengthPredictor(nn.Module):
    """The encoder, a head for length buckets and, where there are tasks, one for those.

    The bucket head sees the pooled vector and the numeric features side by side; the task head the pooled vector.

    Attributes:
      config: sizes.
      dropout: rate of the encoder, and before the heads; needs an rng named `dropout` where not `deterministic`.
    """

    config: PredictorConfig
    dropout: float = 0.0

    def setup(self) -> None:
        """The parts, under their Hugging Face names."""
        config = self.config
        self.distilbert = DistilBert(config.encoder, self.dropout)
        if config.head_hidden:
            self.pre_classifier = _dense(config.head_hidden)
        self.classifier = _dense(config.buckets)
        if config.tasks:
            self.task_classifier = _dense(config.tasks)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, tokens: jax.Array, mask: jax.Array, features: jax.Array, *, deterministic: bool = True
    ) -> Logits:
        """Logits of a batch: `tokens` and `mask` as in `DistilBert`, `features` [R, F] float32."""
        pooled = self.pool(tokens, mask, deterministic=deterministic)
        return self.classify(pooled, features, deterministic=deterministic)

    def pool(self, tokens: jax.Array, mask: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """[R, D] float32, one vector for each prompt."""
        hidden = self.distilbert(tokens, mask, deterministic=deterministic)
        return pool(hidden, mask, self.config.pooling)

    def classify(self, pooled: jax.Array, features: jax.Array, *, deterministic: bool = True) -> Logits:
        """Logits from pooled vectors [R, D] and features [R, F]."""
        pooled = self.drop(pooled, deterministic=deterministic)
        inputs = jnp.concatenate([pooled, features], axis=-1)
        if self.config.head_hidden:
            inputs = self.drop(nn.relu(self.pre_classifier(inputs)), deterministic=deterministic)
        tasks = self.task_classifier(pooled) if self.config.tasks else jnp.zeros((len(pooled), 0), jnp.float32)
        return Logits(self.classifier(inputs), tasks)


def pool(hidden: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """[R, D] float32: of hidden states [R, L, D] the first (`cls`), or the mean of those in `mask` [R, L]."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.astype(hidden.dtype)
    sums = jnp.einsum("rl,rld->rd", weights, hidden)
    return sums / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), 1)


class _Embeddings(nn.Module):
    """Word and position embeddings, added and normalised."""

    config: DistilBertConfig
    dropout: float

    @nn.compact
    def __call__(self, tokens: jax.Array, deterministic: bool) -> jax.Array:
        config, init = self.config, nn.initializers.normal(INITIAL_STD)
        words = nn.Embed(config.vocab_size, config.dim, embedding_init=init, name="word_embeddings")(tokens)
        table = nn.Embed(config.max_position, config.dim, embedding_init=init, name="position_embeddings")
        positions = table(jnp.arange(tokens.shape[1], dtype=jnp.int32))
        hidden = nn.LayerNorm(epsilon=NORM_EPSILON, name="LayerNorm")(words + positions[None])
        return nn.Dropout(self.dropout)(hidden, deterministic=deterministic)


class _Layer(nn.Module):
    """One transformer layer: attention and a feed-forward part, each added and then normalised."""

    config: DistilBertConfig
    dropout: float

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        attended = _Attention(config, self.dropout, name="attention")(hidden, mask, deterministic)
        hidden = nn.LayerNorm(epsilon=NORM_EPSILON, name="sa_layer_norm")(attended + hidden)
        forward = _FeedForward(config, name="ffn")(hidden)
        forward = nn.Dropout(self.dropout)(forward, deterministic=deterministic)
        return nn.LayerNorm(epsilon=NORM_EPSILON, name="output_layer_norm")(forward + hidden)


class _Attention(nn.Module):
    """Every position looks at the unmasked ones, head by head."""

    config: DistilBertConfig
    dropout: float

    @nn.compact
    def __call__(self, hidden: jax.Array, mask: jax.Array, deterministic: bool) -> jax.Array:
        config = self.config
        by_head = (*hidden.shape[:-1], config.heads, config.dim // config.heads)
        query, key, value = (_dense(config.dim, f"{part}_lin")(hidden).reshape(by_head) for part in "qkv")
        scores = jnp.einsum("rqhd,rkhd->rhqk", query, key) / jnp.sqrt(jnp.float32(by_head[-1]))
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        weights = nn.Dropout(self.dropout)(nn.softmax(scores, axis=-1), deterministic=deterministic)
        context = jnp.einsum("rhqk,rkhd->rqhd", weights, value)
        return _dense(config.dim, "out_lin")(context.reshape(hidden.shape))


class _FeedForward(nn.Module):
    """Two dense layers with an exact gelu in between."""

    config: DistilBertConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        inner = nn.gelu(_dense(self.config.hidden, "lin1")(hidden), approximate=False)
        return _dense(self.config.dim, "lin2")(inner)


def _dense(units: int, name: str | None = None) -> nn.Dense:
    return nn.Dense(units, kernel_init=nn.initializers.normal(INITIAL_STD), name=name)
