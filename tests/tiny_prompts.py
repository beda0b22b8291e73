"""Prompts whose answers are as long as a word of them says, a file of them, and a tiny encoder to begin from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from jaxroute.predictor.shape import DistilBertConfig, encoder_shapes
from jaxroute.predictor.weights import write_tensors
from tiny_predictor import tokenizer_json

LENGTHS = {"who": 4, "tell": 40, "story": 400}
"""The word that says it, and the tokens of the answer."""


def prompt_rows(count: int = 96, seed: int = 0) -> list[dict[str, object]]:
    """Rows of all splits; every sixth is a test row, every sixth a validation row."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(count):
        word = list(LENGTHS)[int(rng.integers(3))]
        filler = " ".join(rng.choice(["the", "you", "me", "is", "a"], int(rng.integers(2, 8))))
        rows.append(
            {
                "id": f"row-{number}",
                "prompt": f"{filler} {word} {filler}",
                "output_tokens": LENGTHS[word] + int(rng.integers(3)),
                "task": ("qa_open", "chat")[number // 6 % 2],
                "split": {4: "val", 5: "test"}.get(number % 6, "train"),
                "group": f"group-{number}",
                "source": ("free", "bound")[number % 3 == 0],
                "length_kind": ("llm", "reference")[number % 4 == 0],
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    """JSON lines; gzip where the name says so."""
    text = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def tiny_encoder(path: Path) -> Path:
    """The folder of a DistilBERT with one layer of 8 units and random weights."""
    words = len(json.loads(tokenizer_json())["model"]["vocab"])
    config = DistilBertConfig(words, 32, 8, 1, 2, 16)
    rng = np.random.default_rng(0)
    path.mkdir()
    shapes = encoder_shapes(config)
    weights = {
        name: (rng.normal(0, 0.3, shape) + (name.endswith("orm.weight"))).astype(np.float32)
        for name, shape in shapes.items()
    }
    write_tensors(weights, path / "model.safetensors")
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "activation": "gelu"}
    facts = {"model_type": "distilbert", "vocab_size": words, "max_position_embeddings": 32, **sizes}
    (path / "config.json").write_text(json.dumps(facts))
    (path / "tokenizer.json").write_text(tokenizer_json())
    return path
