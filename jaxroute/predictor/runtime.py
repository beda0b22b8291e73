"""The predictor's network in NumPy: what serves it where there is no jax, equal to the Flax one to 1e-4.

On one core of a shared AMD EPYC, two layers of 128 units at 64 tokens take 0.8 ms (`cls`) or 1.25 ms (`mean`), where
onnxruntime 1.32 takes 0.9 ms for the latter and torch 1.3 ms: not worth a dependency of 80 MB. `jaxroute predictor show
--time` measures it, tokenizer included. Set OPENBLAS_NUM_THREADS=1 where the cores have other work: in small products
threads mostly wait for each other.

Axis letters: T tokens of all prompts of a batch, L of one prompt, R prompts, D units, B buckets, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxroute.predictor.shape import NORM_EPSILON, PredictorConfig
from jaxroute.predictor.tokenizer import Encoded

TOKENS_AT_ONCE = 1024
"""Of a batch's tokens; what they need stays in the core's cache."""


class Output(NamedTuple):
    """What the heads say of each prompt.

    Attributes:
      buckets: [R, B] float32, logits.
      tasks: [R, K] float32, logits; no columns where there is no task head.
    """

    buckets: np.ndarray
    tasks: np.ndarray


class Network:
    """Runs one network, in float32.

    The tokens of a batch's prompts are rows of one matrix, one prompt behind the other: nothing is padded, so nothing
    has to be masked. Each layer is one product over all rows but for the attention, which goes prompt by prompt and
    head by head. Where the first position stands for the prompt, the last layer computes only that one.

    Attributes:
      config: its sizes.
    """

    def __init__(self, config: PredictorConfig, weights: Mapping[str, np.ndarray]) -> None:
        """Prepares the weights, which `weights.check_tensors` has found to be those of `config`."""
        self.config = config
        encoder = config.encoder
        self._words = np.asarray(weights["distilbert.embeddings.word_embeddings.weight"], np.float32)
        self._positions = np.asarray(weights["distilbert.embeddings.position_embeddings.weight"], np.float32)
        self._norm = _Norm(weights, "distilbert.embeddings.LayerNorm")
        self._layers = [
            _Layer(weights, f"distilbert.transformer.layer.{number}", encoder.heads) for number in range(encoder.layers)
        ]
        self._hidden = _Dense(weights, "pre_classifier") if config.head_hidden else None
        self._buckets = _Dense(weights, "classifier")
        self._tasks = _Dense(weights, "task_classifier") if config.tasks else None

    def __call__(self, prompts: Sequence[Encoded]) -> Output:
        """Logits of R prompts, R >= 1."""
        pooled = np.concatenate([self._pooled(prompts[start:end]) for start, end in _batches(prompts)])
        inputs = np.concatenate([pooled, np.stack([prompt.features for prompt in prompts])], axis=1)
        if self._hidden is not None:
            inputs = np.maximum(self._hidden(inputs), 0)
        tasks = np.zeros((len(prompts), 0), np.float32) if self._tasks is None else self._tasks(pooled)
        return Output(self._buckets(inputs), tasks)

    def _pooled(self, prompts: Sequence[Encoded]) -> np.ndarray:
        """[R, D], one vector for each prompt."""
        lengths = np.asarray([len(prompt.tokens) for prompt in prompts], np.int64)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        hidden = self._words[np.concatenate([prompt.tokens for prompt in prompts])]
        hidden += np.concatenate([self._positions[:length] for length in lengths])
        hidden = self._norm(hidden)
        spans = list(zip(starts.tolist(), ends.tolist(), strict=True))
        first_only = self.config.pooling == "cls"
        for number, layer in enumerate(self._layers):
            hidden = layer(hidden, spans, first_only=first_only and number == len(self._layers) - 1)
        if first_only:
            return hidden if self._layers else hidden[starts]
        return np.add.reduceat(hidden, starts, axis=0) / lengths.astype(np.float32)[:, None]


class _Dense:
    """A linear layer."""

    def __init__(self, weights: Mapping[str, np.ndarray], name: str) -> None:
        self.kernel = np.ascontiguousarray(np.asarray(weights[f"{name}.weight"], np.float32).T)
        self.bias = np.asarray(weights[f"{name}.bias"], np.float32)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        outputs = inputs @ self.kernel
        outputs += self.bias
        return outputs


class _Norm:
    """A LayerNorm."""

    def __init__(self, weights: Mapping[str, np.ndarray], name: str) -> None:
        self.scale = np.asarray(weights[f"{name}.weight"], np.float32)
        self.bias = np.asarray(weights[f"{name}.bias"], np.float32)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Normalises rows, in place."""
        size = values.shape[1]
        values -= np.add.reduce(values, axis=1, keepdims=True) / size
        variance = np.einsum("td,td->t", values, values) / size
        values *= (1 / np.sqrt(variance + NORM_EPSILON))[:, None]
        values *= self.scale
        values += self.bias
        return values


class _Layer:
    """A transformer layer."""

    def __init__(self, weights: Mapping[str, np.ndarray], name: str, heads: int) -> None:
        query, key, value = (_Dense(weights, f"{name}.attention.{part}_lin") for part in "qkv")
        self._dim = len(query.bias)
        self._head = self._dim // heads
        # The scores' scale goes into the queries.
        scale = np.float32(self._head**-0.5)
        self._query = (query.kernel * scale, query.bias * scale)
        self._key_value = (np.hstack([key.kernel, value.kernel]), np.concatenate([key.bias, value.bias]))
        self._all = tuple(np.concatenate(pair, axis=-1) for pair in zip(self._query, self._key_value, strict=True))
        self._out = _Dense(weights, f"{name}.attention.out_lin")
        self._attention_norm = _Norm(weights, f"{name}.sa_layer_norm")
        self._up, self._down = _Dense(weights, f"{name}.ffn.lin1"), _Dense(weights, f"{name}.ffn.lin2")
        self._norm = _Norm(weights, f"{name}.output_layer_norm")

    def __call__(self, hidden: np.ndarray, spans: Sequence[tuple[int, int]], *, first_only: bool) -> np.ndarray:
        """Hidden states [T, D] after the layer, or [R, D] of each prompt's first position."""
        if first_only:
            projected = hidden @ self._key_value[0]
            projected += self._key_value[1]
            keys, values = projected[:, : self._dim], projected[:, self._dim :]
            hidden = hidden[[start for start, _ in spans]]
            queries = hidden @ self._query[0] + self._query[1]
            asking = [(number, number + 1) for number in range(len(spans))]
        else:
            projected = hidden @ self._all[0]
            projected += self._all[1]
            queries, keys, values = (projected[:, part * self._dim : (part + 1) * self._dim] for part in range(3))
            asking = list(spans)
        context = np.empty_like(hidden)
        for (first, last), (start, end) in zip(asking, spans, strict=True):
            for left in range(0, self._dim, self._head):
                units = slice(left, left + self._head)
                weights = queries[first:last, units] @ keys[start:end, units].T
                weights -= np.maximum.reduce(weights, axis=1, keepdims=True)
                np.exp(weights, out=weights)
                weights /= np.add.reduce(weights, axis=1, keepdims=True)
                np.matmul(weights, values[start:end, units], out=context[first:last, units])
        attended = self._out(context)
        attended += hidden
        hidden = self._attention_norm(attended)
        forward = self._down(gelu(self._up(hidden)))
        forward += hidden
        return self._norm(forward)


def gelu(values: np.ndarray) -> np.ndarray:
    """The exact gelu, x * Phi(x), in place, within 3e-7 * |x|.

    As max(x, 0) - |x| * erfc(|x| / sqrt 2) / 2, with erfc by Abramowitz and Stegun's rational formula 7.1.26.
    """
    size = np.abs(values)
    near = 1 / (1 + np.float32(0.3275911 * 0.5**0.5) * size)
    tail = np.full_like(values, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail *= near
        tail += np.float32(coefficient)
    tail *= near
    tail *= size
    tail *= np.float32(0.5)
    size *= size
    size *= np.float32(-0.5)
    tail *= np.exp(size, out=size)
    np.maximum(values, 0, out=values)
    values -= tail
    return values


def _batches(prompts: Sequence[Encoded]) -> list[tuple[int, int]]:
    """Ranges of prompts of at most `TOKENS_AT_ONCE` tokens together, or of one prompt."""
    ranges, start, tokens = [], 0, 0
    for number, prompt in enumerate(prompts):
        tokens += len(prompt.tokens)
        if tokens > TOKENS_AT_ONCE and number > start:
            ranges.append((start, number))
            start, tokens = number, len(prompt.tokens)
    return [*ranges, (start, len(prompts))]
