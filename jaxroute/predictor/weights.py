"""Weights of the predictor: safetensors files in Hugging Face names, and their place in the Flax tree; no jax.

A set of tensors is a dict from Hugging Face names to NumPy arrays, laid out as torch does (`shape` has the names and
shapes). Linear layers are transposed on the way to Flax, nothing else changes:

    transformer.layer.1.attention.q_lin.weight [out, in] <-> layer_1/attention/q_lin/kernel [in, out]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxroute.errors import InputError, first_line
from jaxroute.predictor.shape import Shapes

Tensors = dict[str, np.ndarray]

OTHER_FILE = "take all files of a model from one place, or fetch them again"

_LAYER = re.compile(r"\btransformer\.layer\.(\d+)\b")
_BERT_PARTS = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


def read_tensors(path: str | Path) -> Tensors:
    """Reads a safetensors file.

    Raises:
      InputError: there is none, or it is damaged: names the file, the tensor where the file ends, and the remedy.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a model's weights are a safetensors file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); check the path and its permissions") from error
    return tensors_of(content, str(path))


def tensors_of(content: bytes, place: str) -> Tensors:
    """The tensors of a safetensors file's content; errors call the file `place`.

    Raises:
      InputError: as `read_tensors`.
    """
    try:
        return dict(load(content))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if cut := _cut_tensor(content):
            raise InputError(f"{place}: the file ends within {cut}; fetch it again") from error
        raise InputError(
            f"{place}: is no safetensors file that NumPy reads ({first_line(error)}); fetch it again"
        ) from error


def bytes_of(tensors: Mapping[str, np.ndarray], *, float16: bool = False) -> bytes:
    """The content of a safetensors file with these tensors, as float32 or rounded to float16.

    Raises:
      InputError: a number that is not finite, or not so in float16.
    """
    kind = np.float16 if float16 else np.float32
    with np.errstate(over="ignore"):
        out = {name: np.ascontiguousarray(array, kind) for name, array in tensors.items()}
    for name, array in out.items():
        if not np.isfinite(array).all():
            raise InputError(f"{name}: holds a number that is not finite in {array.dtype}; train the model again")
    return bytes(save(out))


def write_tensors(tensors: Mapping[str, np.ndarray], path: str | Path, *, float16: bool = False) -> None:
    """Writes a safetensors file: see `bytes_of`."""
    Path(path).write_bytes(bytes_of(tensors, float16=float16))


def check_tensors(tensors: Mapping[str, np.ndarray], shapes: Shapes, place: str) -> Tensors:
    """The tensors in float32, if they are those that a network needs.

    Args:
      tensors: floating-point arrays.
      shapes: all names and shapes that the network has.
      place: what errors call the file.

    Raises:
      InputError: names a tensor that is missing, foreign, of another shape or kind, or not finite.
    """
    for name in sorted(shapes.keys() ^ tensors.keys()):
        what = "is missing" if name in shapes else "is no weight of this network"
        raise InputError(f"{place}: {name} {what}; {OTHER_FILE}")
    checked: Tensors = {}
    for name, shape in shapes.items():
        array = tensors[name]
        if array.shape != shape:
            raise InputError(
                f"{place}: {name} is {list(array.shape)}, but the network needs {list(shape)}; {OTHER_FILE}"
            )
        if array.dtype.kind != "f":
            raise InputError(f"{place}: {name} holds {array.dtype}, must be floating-point numbers; {OTHER_FILE}")
        checked[name] = np.asarray(array, np.float32)
        if not np.isfinite(checked[name]).all():
            raise InputError(f"{place}: {name} holds a number that is not finite; {OTHER_FILE}")
    return checked


def to_flax(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Variables of `DistilBert` (names as in `encoder_shapes`) or `LengthPredictor` (as in `predictor_shapes`).

    Returns:
      {"params": nested dicts of float32 NumPy arrays}.
    """
    tree: dict[str, Any] = {}
    for name, array in tensors.items():
        *parents, leaf = _LAYER.sub(r"layer_\1", name).split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        kind = _kind(parents[-1], leaf)
        node[kind] = np.asarray(array.T if kind == "kernel" else array, np.float32)
    return {"params": tree}


def from_flax(variables: Mapping[str, Any]) -> Tensors:
    """The inverse of `to_flax`: tensors in Hugging Face names, float32 NumPy."""
    tensors: Tensors = {}

    def walk(node: Mapping[str, Any], path: tuple[str, ...]) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping):
                walk(value, (*path, re.sub(r"^layer_(\d+)$", r"transformer.layer.\1", key)))
            else:
                array = np.asarray(value, np.float32)
                leaf = "bias" if key == "bias" else "weight"
                tensors[".".join((*path, leaf))] = array.T if key == "kernel" else array

    walk(cast("Mapping[str, Any]", variables["params"]), ())
    return tensors


def distilbert_from_bert(tensors: Mapping[str, np.ndarray], place: str) -> Tensors:
    """A BERT encoder (MiniLM too) as the DistilBERT encoder that computes the same.

    DistilBERT has no token types; prompts are all of type 0, so row 0 of its table is added to every position. The
    pooler is dropped.

    Args:
      tensors: in the names of transformers' `BertModel`.
      place: what errors call the file.

    Raises:
      InputError: names the embedding that is missing.
    """
    mapped: Tensors = {}
    for name, array in tensors.items():
        if name.startswith("embeddings."):
            mapped[name] = array
        elif match := re.fullmatch(r"encoder\.(layer\.\d+)\.(.+)\.(weight|bias)", name):
            layer, part, leaf = match.groups()
            mapped[f"transformer.{layer}.{_BERT_PARTS.get(part, part)}.{leaf}"] = array
    types, positions = "embeddings.token_type_embeddings.weight", "embeddings.position_embeddings.weight"
    for name in (types, positions):
        if name not in mapped:
            raise InputError(f"{place}: {name} is missing; {OTHER_FILE}")
    type_0 = mapped.pop(types)[0]
    if mapped[positions].shape[1:] != type_0.shape:
        raise InputError(f"{place}: {types} has rows of {len(type_0)}, {positions} others; {OTHER_FILE}")
    mapped[positions] = mapped[positions] + type_0
    return mapped


def _kind(module: str, leaf: str) -> str:
    """What Flax calls a `weight` or `bias` of a module with this name."""
    if leaf == "bias":
        return "bias"
    if module.endswith("_embeddings"):
        return "embedding"
    return "scale" if module.lower().endswith("norm") else "kernel"


def _cut_tensor(content: bytes) -> str | None:
    """The tensor that a file breaks off in; None where that is not what is wrong with it."""
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        ends = {name: entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"}
        missing = [
            name for name, end in sorted(ends.items(), key=lambda item: item[1]) if 8 + size + end > len(content)
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    return missing[0] if missing else None
