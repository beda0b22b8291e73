"""The configuration of a predictor's training: plain dataclasses that `load` fills in from TOML."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RowsConfig:
    """Which rows are trained and validated on.

    Attributes:
      exclude_sources: rows of these sources are left out of training and validation, such as those whose licence does
        not allow a model to be given away.
      tasks: rows of these tasks only; empty for all.
      made_translations: training rows to make, see `translations`; validation rows come in the same proportion.
    """

    exclude_sources: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    made_translations: int = 0


@dataclasses.dataclass(frozen=True)
class BucketsConfig:
    """Length buckets, fitted on training rows.

    Attributes:
      kind: as frequent as each other (quantile), as wide as each other (equal), each wider by a factor (geometric), or
        the paper's 0-250, 250-1000, ... (paper).
      count: B, of quantile, geometric and paper.
      width: of equal ones, output tokens.
      most: longest answer that the servers give, output tokens; 0 for the longest training row.
    """

    kind: Literal["quantile", "equal", "geometric", "paper"] = "quantile"
    count: int = 5
    width: int = 512
    most: int = 0


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The network and its tokens.

    Attributes:
      pretrained: what gives tokenizer and weights: `minilm`, a folder, or a name on the Hugging Face hub.
      start: `layers`, its first layers; `words`, an encoder of `dim` units whose word embeddings are the main
        directions of its own ones; `nothing`, random weights, only its tokenizer.
      layers: transformer layers.
      dim, heads, hidden: units, heads and feed-forward units; those of the pretrained encoder under `layers`.
      vocabulary: words to keep, the most used ones of the training rows; 0 for all.
      max_tokens: a longer prompt is cut.
      tail_tokens: of a longer prompt's end that stay.
      pooling: what stands for a prompt, its first position or the mean.
      head_hidden: units of the head's hidden layer; 0 for none.
      frozen: whether only the heads are trained, on cached vectors of the encoder, each unit of them scaled to a
        standard deviation of 1.
    """

    pretrained: str = "minilm"
    start: Literal["layers", "words", "nothing"] = "words"
    layers: int = 2
    dim: int = 128
    heads: int = 4
    hidden: int = 512
    vocabulary: int = 0
    max_tokens: int = 64
    tail_tokens: int = 0
    pooling: Literal["cls", "mean"] = "cls"
    head_hidden: int = 64
    frozen: bool = False


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How it is fitted.

    Attributes:
      epochs: most passes over the training rows.
      batch: rows of an update.
      learning_rate: the highest; it is reached after `warmup`, then falls along a cosine to a fiftieth.
      warmup: share of all updates.
      weight_decay: of AdamW, on kernels and embeddings.
      dropout: rate within the encoder and before the heads.
      word_dropout: rate at which tokens are taken for unknown ones, so that prompts are not learned by heart.
      hint: whether the sentence that names the task is behind a prompt: never, or optional (in `hint_share` of the
        cases, so that one network serves with and without), or always.
      hint_share: see `hint`.
      task_weight: weight of the loss of the head that tells tasks apart; 0 for no such head.
      ordinal: softness of the targets: a bucket at distance k of the true one has exp(-k / ordinal) of its weight; 0
        for one-hot targets.
      class_weight: rows weigh as the frequency of their bucket to the power of minus this; 0 for all alike.
      average: decay of the running mean of the weights, which is what is validated and kept; 0 for the weights
        themselves.
      feature_scale: standard deviation of the numeric features in the first head layer's input.
      max_grad_norm: longer gradients are cut to it.
      select: what the best epoch is chosen by, on validation rows: top1, or loss.
      patience: epochs without a better one after which it ends; 0 for never.
    """

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.08
    weight_decay: float = 0.01
    dropout: float = 0.2
    word_dropout: float = 0.2
    hint: Literal["never", "optional", "always"] = "optional"
    hint_share: float = 0.5
    task_weight: float = 0.1
    ordinal: float = 0.0
    class_weight: float = 0.0
    average: float = 0.99
    feature_scale: float = 2.0
    max_grad_norm: float = 1.0
    select: Literal["top1", "loss"] = "loss"
    patience: int = 3


@dataclasses.dataclass(frozen=True)
class PredictorTrainConfig:
    """A training of a predictor.

    Attributes:
      name: of the predictor.
      seed: of everything random.
      float16: whether its weights are written in half of the space.
      rows: which rows.
      buckets: what is told apart.
      encoder: the network.
      fit: how it is fitted.
    """

    name: str = "predictor"
    seed: int = 0
    float16: bool = True
    rows: RowsConfig = RowsConfig()
    buckets: BucketsConfig = BucketsConfig()
    encoder: EncoderConfig = EncoderConfig()
    fit: FitConfig = FitConfig()
