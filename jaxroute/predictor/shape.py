"""Sizes of a predictor's network, and the shapes of its weights under their Hugging Face names; no jax.

Axis letters of the predictor: R prompts of a batch (rows), L token positions, D units of the encoder, F numeric
features, B length buckets, K tasks.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Pooling = Literal["cls", "mean"]

NORM_EPSILON = 1e-12
"""Of every LayerNorm of BERT, DistilBERT and MiniLM."""

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class DistilBertConfig:
    """A DistilBERT encoder (Sanh et al. 2019, arXiv 1910.01108); the defaults are those of `distilbert-base-uncased`.

    Attributes:
      vocab_size: rows of the word embedding.
      max_position: most token positions.
      dim: D, units of each position.
      layers: transformer layers.
      heads: attention heads; must divide `dim`.
      hidden: units of the feed-forward layers.
    """

    vocab_size: int = 30522
    max_position: int = 512
    dim: int = 768
    layers: int = 6
    heads: int = 12
    hidden: int = 3072

    def __post_init__(self) -> None:
        """Raises ValueError where no such network exists."""
        for name, value in vars(self).items():
            if value < (0 if name == "layers" else 1):
                raise ValueError(f"{name} is {value}")
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}, which {self.heads} heads do not divide")


@dataclasses.dataclass(frozen=True)
class PredictorConfig:
    """An encoder and its heads.

    Attributes:
      encoder: the encoder.
      buckets: B, length buckets.
      tasks: K, tasks that a second head tells apart; 0 for no such head.
      features: F, numeric features of a prompt beside its tokens.
      pooling: what stands for a prompt: its first position (`cls`), or the mean of its positions.
      head_hidden: units of a hidden layer between pooled vector and buckets; 0 for none.
    """

    encoder: DistilBertConfig
    buckets: int
    tasks: int = 0
    features: int = 0
    pooling: Pooling = "mean"
    head_hidden: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError where no such network exists."""
        if self.buckets < 1 or min(self.tasks, self.features, self.head_hidden) < 0:
            raise ValueError("buckets must be at least 1; tasks, features and head_hidden at least 0")
        if self.pooling not in ("cls", "mean"):
            raise ValueError(f"pooling is {self.pooling!r}; known: cls, mean")


def encoder_shapes(config: DistilBertConfig) -> Shapes:
    """Shapes of the encoder's weights as `DistilBertModel` of transformers names and lays them out."""
    dim, hidden = config.dim, config.hidden
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config.vocab_size, dim),
        "embeddings.position_embeddings.weight": (config.max_position, dim),
    }
    shapes |= _norm("embeddings.LayerNorm", dim)
    for layer in range(config.layers):
        place = f"transformer.layer.{layer}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            shapes |= _linear(f"{place}.attention.{part}", dim, dim)
        shapes |= _norm(f"{place}.sa_layer_norm", dim)
        shapes |= _linear(f"{place}.ffn.lin1", dim, hidden) | _linear(f"{place}.ffn.lin2", hidden, dim)
        shapes |= _norm(f"{place}.output_layer_norm", dim)
    return shapes


def predictor_shapes(config: PredictorConfig) -> Shapes:
    """Shapes of all weights as `DistilBertForSequenceClassification` names them.

    The encoder's names begin with `distilbert.`; `pre_classifier` is the hidden layer of the head, `classifier` gives
    the buckets and `task_classifier` (ours) the tasks.
    """
    shapes = {f"distilbert.{name}": shape for name, shape in encoder_shapes(config.encoder).items()}
    inputs = config.encoder.dim + config.features
    if config.head_hidden:
        shapes |= _linear("pre_classifier", inputs, config.head_hidden)
    shapes |= _linear("classifier", config.head_hidden or inputs, config.buckets)
    if config.tasks:
        shapes |= _linear("task_classifier", config.encoder.dim, config.tasks)
    return shapes


def _linear(name: str, inputs: int, units: int) -> Shapes:
    """As torch lays it out: a row for each unit."""
    return {f"{name}.weight": (units, inputs), f"{name}.bias": (units,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
