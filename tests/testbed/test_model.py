"""The model that the engines serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.testbed import model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.model_folder(tmp_path_factory.mktemp("cache"))


def test_transformers_loads_config_and_tokenizer(folder: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (config.model_type, config.vocab_size, config.num_hidden_layers) == ("llama", model.VOCABULARY, 1)
    assert len(tokenizer) == model.VOCABULARY
    assert tokenizer.eos_token_id == config.eos_token_id
    text = "def main(): return 'Grüße, 世界'\n"
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < len(text.encode())
    assert model.TURN in tokenizer.chat_template


def test_it_is_made_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_files", None)
    assert model.model_folder(folder.parent) == folder


def test_another_recipe_is_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "CONFIG", {**model.CONFIG, "hidden_size": 128})
    monkeypatch.setattr(model, "_trained_tokenizer", lambda: "{}")
    made = model.model_folder(tmp_path)
    assert made.name != folder.name
    assert json.loads((made / "config.json").read_text())["hidden_size"] == 128


def test_a_training_that_breaks_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "_trained_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.model_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(model, "_trained_tokenizer", lambda: "{}")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot be written .*; set XDG_CACHE_HOME"):
        model.model_folder(tmp_path / "cache")
