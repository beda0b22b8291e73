"""Weight files: names both ways, float16, and one line for whatever does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxroute.errors import InputError
from jaxroute.predictor.shape import DistilBertConfig, encoder_shapes, predictor_shapes
from jaxroute.predictor.weights import (
    Tensors,
    check_tensors,
    distilbert_from_bert,
    from_flax,
    read_tensors,
    to_flax,
    write_tensors,
)
from tiny_predictor import tiny_predictor

CONFIG = DistilBertConfig(vocab_size=11, max_position=7, dim=4, layers=2, heads=2, hidden=6)


def random_encoder() -> Tensors:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in encoder_shapes(CONFIG).items()}


def refusal(tensors: Tensors) -> str:
    with pytest.raises(InputError) as error:
        check_tensors(tensors, encoder_shapes(CONFIG), "model.safetensors")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_distilbert_base_has_the_tensors_and_numbers_of_the_published_one() -> None:
    shapes = encoder_shapes(DistilBertConfig())
    assert len(shapes) == 100
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 66_362_880


def test_linear_layers_are_transposed_and_nothing_else_is() -> None:
    tensors = random_encoder()
    params = to_flax(tensors)["params"]
    name = "transformer.layer.1.ffn.lin1.weight"
    np.testing.assert_array_equal(params["layer_1"]["ffn"]["lin1"]["kernel"], tensors[name].T)
    words = params["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(words, tensors["embeddings.word_embeddings.weight"])
    scale = params["layer_0"]["sa_layer_norm"]["scale"]
    np.testing.assert_array_equal(scale, tensors["transformer.layer.0.sa_layer_norm.weight"])


def test_names_come_back_as_they_went() -> None:
    for tensors in (random_encoder(), dict(tiny_predictor().weights)):
        again = from_flax(to_flax(tensors))
        assert again.keys() == tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_array_equal(again[name], array)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = random_encoder()
    write_tensors(tensors, tmp_path / "full.safetensors")
    write_tensors(tensors, tmp_path / "half.safetensors", float16=True)
    for name, array in read_tensors(tmp_path / "full.safetensors").items():
        np.testing.assert_array_equal(array, tensors[name])
    for name, array in read_tensors(tmp_path / "half.safetensors").items():
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, tensors[name], atol=2e-3)
    with pytest.raises(InputError, match=r"big: holds a number that is not finite in float16"):
        write_tensors({"big": np.full(1, 1e6, np.float32)}, tmp_path / "no.safetensors", float16=True)
    assert not (tmp_path / "no.safetensors").exists()


def test_a_file_that_is_cut_says_in_which_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(random_encoder(), path)
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"model.safetensors: the file ends within transformer\.\S+; fetch it again"):
        read_tensors(path)
    for start in (0, 5, 100):
        path.write_bytes(content[:start])
        with pytest.raises(InputError, match=r"model.safetensors: is no safetensors file that NumPy reads"):
            read_tensors(path)
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        read_tensors(tmp_path)


def test_tensors_that_do_not_fit_are_named() -> None:
    name = "transformer.layer.1.ffn.lin1.bias"
    good = random_encoder()
    assert refusal({key: array for key, array in good.items() if key != name}) == (
        f"model.safetensors: {name} is missing; take all files of a model from one place, or fetch them again"
    )
    assert f"{name}2 is no weight of this network" in refusal(good | {f"{name}2": good[name]})
    assert f"{name} is [3], but the network needs [6]" in refusal(good | {name: good[name][:3]})
    assert f"{name} holds int64, must be floating-point" in refusal(good | {name: np.zeros(6, np.int64)})
    assert f"{name} holds a number that is not finite" in refusal(good | {name: np.full(6, np.nan, np.float32)})


def test_bert_without_its_embeddings_is_named() -> None:
    with pytest.raises(InputError, match=r"embeddings.token_type_embeddings.weight is missing"):
        distilbert_from_bert({"embeddings.position_embeddings.weight": np.zeros((2, 3))}, "model")
    with pytest.raises(InputError, match="has rows of 4"):
        distilbert_from_bert(
            {
                "embeddings.position_embeddings.weight": np.zeros((2, 3)),
                "embeddings.token_type_embeddings.weight": np.zeros((2, 4)),
            },
            "model",
        )


def test_token_types_are_folded_into_positions() -> None:
    positions, types = np.arange(6.0).reshape(2, 3), np.asarray([[10.0, 20, 30], [1, 1, 1]])
    mapped = distilbert_from_bert(
        {
            "embeddings.position_embeddings.weight": positions,
            "embeddings.token_type_embeddings.weight": types,
            "encoder.layer.0.attention.output.LayerNorm.bias": np.zeros(3),
            "encoder.layer.0.output.dense.weight": np.zeros((3, 6)),
            "pooler.dense.bias": np.zeros(3),
        },
        "model",
    )
    assert mapped["embeddings.position_embeddings.weight"].tolist() == [[10, 21, 32], [13, 24, 35]]
    assert sorted(mapped) == [
        "embeddings.position_embeddings.weight",
        "transformer.layer.0.ffn.lin2.weight",
        "transformer.layer.0.sa_layer_norm.bias",
    ]


def test_a_foreign_kind_of_number_is_one_line(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.int64)}, tmp_path / "whole.safetensors")
    tensors = read_tensors(tmp_path / "whole.safetensors")
    with pytest.raises(InputError, match="a is no weight of this network"):
        check_tensors(tensors, predictor_shapes(tiny_predictor().config), "whole.safetensors")
