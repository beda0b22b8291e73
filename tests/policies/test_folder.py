"""Policy folders: what is written is what is read, and one line for what cannot be read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxroute import whole_folder
from jaxroute.errors import InputError
from jaxroute.observation import GLOBAL_FEATURES, INSTANCE_FEATURES, Encoding
from jaxroute.policies.folder import digest, find_policy, read_policy, write_policy
from trained import random_policy, sizes


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_policy(random_policy(), tmp_path / "policy")
    return tmp_path / "policy"


def change(folder: Path, **fields: object) -> None:
    path = folder / "policy.json"
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def change_weights(folder: Path, **arrays: np.ndarray | None) -> None:
    """Other weights, with the digest that goes with them."""
    path = folder / "policy.safetensors"
    both = load_file(path) | {name.replace("__", "/"): array for name, array in arrays.items()}
    save_file({name: array for name, array in both.items() if array is not None}, path)
    change(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as error:
        read_policy(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("encoding", ["rich", "paper"])
def test_a_policy_is_read_as_it_was_written(tmp_path: Path, encoding: Encoding) -> None:
    policy = random_policy(
        encoding, (8, 4), holds=False, router_order="shortest-predicted", ageing=2.5, spf_edges=(64, 256)
    )
    write_policy(policy, tmp_path / "deep" / "policy")
    again = read_policy(tmp_path / "deep" / "policy")
    plain = [field.name for field in dataclasses.fields(policy) if field.name not in ("scales", "weights")]
    assert [getattr(again, name) for name in plain] == [getattr(policy, name) for name in plain]
    for name, values in vars(policy.scales).items():
        assert getattr(again.scales, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(again.scales, name), values)
    assert again.weights.keys() == policy.weights.keys()
    for name, array in policy.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)
    assert digest(again) == digest(policy) != digest(random_policy(encoding, (8, 4), seed=1))


def test_the_json_says_what_the_policy_is(written: Path) -> None:
    data = json.loads((written / "policy.json").read_text())
    assert data["format_version"] == 1
    assert data["router_features"] == list(GLOBAL_FEATURES)
    assert data["instance_features"] == list(INSTANCE_FEATURES)
    assert data["network"] == {"hidden": [32, 32], "holds": True, "activation": "tanh"}
    assert data["actions"] == "0..I-1: instance for the head of the queue; I: hold"
    assert data["training"] == {"steps": 1000, "seed": 3}
    assert sorted(path.name for path in written.iterdir()) == ["policy.json", "policy.safetensors"]


def test_a_file_without_edges_ranks_predictions_as_they_are(written: Path) -> None:
    assert json.loads((written / "policy.json").read_text())["spf_edges"] == []
    change(written, spf_edges=None)
    assert read_policy(written).spf_edges == ()


def test_the_parameters_are_counted() -> None:
    router, features = sizes("rich")
    part = (3 * features + router + 1) * 32 + 33 * 32 + 33
    assert random_policy().parameters == 2 * part + features + (features + router + 1)


def test_a_policy_is_replaced_whole_and_nothing_is_left_beside_it(written: Path) -> None:
    write_policy(random_policy(seed=1), written)
    assert digest(read_policy(written)) == digest(random_policy(seed=1))
    assert [path.name for path in written.parent.iterdir()] == ["policy"]


def test_a_policy_that_cannot_be_replaced_stays(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, []

    def fail_once(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no space")
        replace(source, target)

    monkeypatch.setattr(whole_folder.os, "replace", fail_once)
    with pytest.raises(OSError, match="no space"):
        write_policy(random_policy(seed=1), written)
    assert digest(read_policy(written)) == digest(random_policy())
    assert [path.name for path in written.parent.iterdir()] == ["policy"]


def test_anything_else_in_the_way_is_refused_and_kept(tmp_path: Path, written: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is a file; give a folder"):
        write_policy(random_policy(), tmp_path / "file")
    (written / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"is no policy folder, it holds notes.txt; give a new folder"):
        write_policy(random_policy(seed=1), written)
    assert (tmp_path / "file").read_text() == (written / "notes.txt").read_text() == "mine"
    assert digest(read_policy(written)) == digest(random_policy())


def test_a_policy_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    policy = random_policy()
    bad = dataclasses.replace(policy, weights={**policy.weights, "score_out/bias": np.full(1, np.nan, np.float32)})
    with pytest.raises(InputError, match="policy made-up: score_out/bias holds a number that is not finite"):
        write_policy(bad, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_a_policy_is_found_in_its_folder_and_in_a_run(tmp_path: Path, written: Path) -> None:
    assert find_policy(written) == written
    assert find_policy(tmp_path) == written
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds neither policy.json nor a folder policy; give"):
        find_policy(tmp_path / "empty")
    with pytest.raises(InputError, match="nowhere: no such folder; give a policy folder or a training run"):
        find_policy(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
def test_a_missing_file_is_named(written: Path, name: str) -> None:
    (written / name).unlink()
    assert refusal(written) == (
        f"{written / name}: no such file; a policy folder holds policy.json and policy.safetensors"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format_version": 2}, "format_version is 2, but this version reads 1; train it again"),
        ({"format_version": None}, "format_version is None"),
        ({"name": None}, "lacks name; take both files of a policy from one export"),
        ({"name": 3}, "name must be a text"),
        ({"observation": "raw"}, "observation is 'raw'; known: rich, paper"),
        ({"observation": "paper"}, "bucket_edges must not be empty"),
        ({"observation": "paper", "bucket_edges": [1, 1]}, "bucket_edges [1, 1] must ascend"),
        ({"bucket_edges": [True]}, "bucket_edges must be a list of whole numbers"),
        ({"router_features": ["phase of the moon"]}, "router_features: 'phase of the moon' is not among what this"),
        ({"instance_features": list(INSTANCE_FEATURES[::-1])}, "instance_features: its names or their order differ"),
        ({"router_features": "all"}, "router_features must be a list of texts"),
        ({"scales": []}, "scales must be an object"),
        ({"scales": {}}, "scales: lacks router_mean"),
        ({"network": {"hidden": [0], "holds": True, "activation": "tanh"}}, "network.hidden is [0]"),
        ({"network": {"hidden": [8.5], "holds": True, "activation": "tanh"}}, "hidden must be a list of whole numbers"),
        ({"network": {"hidden": [8], "holds": 1, "activation": "tanh"}}, "network: holds must be true or false"),
        ({"network": {"hidden": [32, 32], "holds": True, "activation": "relu"}}, "network.activation is 'relu'"),
        ({"actions": "hold first"}, "actions is 'hold first'"),
        ({"router_order": "lifo"}, "router_order is 'lifo'; known: fcfs, shortest-predicted"),
        ({"ageing": -1}, "ageing is -1"),
        ({"ageing": 10**400}, "ageing holds a number that is too large"),
        ({"spf_edges": [256, 64]}, "spf_edges is [256, 64], must be numbers of tokens above 0 that ascend"),
        ({"spf_edges": [10**40]}, "must be numbers of tokens above 0"),
        ({"spf_edges": 256}, "spf_edges must be a list of whole numbers"),
        ({"dt": 0}, "dt is 0.0"),
        ({"dt": float("nan")}, "dt is nan"),
        ({"profiles": "v100"}, "profiles must be a list of texts"),
        ({"training": 3}, "training must be an object"),
    ],
)
def test_facts_that_cannot_be_run_are_one_line(written: Path, fields: dict[str, object], message: str) -> None:
    change(written, **fields)
    assert refusal(written).startswith(f"{written / 'policy.json'}: ")
    assert message in refusal(written)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("router_mean", [0.0], "scales.router_mean has shape [1], its features need [6]"),
        ("router_mean", [float("nan")] * 6, "scales.router_mean holds a number that is not finite"),
        ("router_mean", [1e300] * 6, "scales.router_mean holds a number that is not finite"),
        ("router_mean", ["0"] * 6, "scales: router_mean must be a list of numbers"),
        ("router_std", [0.0] * 6, "scales.router_std holds a number that is not above 0"),
    ],
)
def test_scales_that_do_not_fit_are_one_line(written: Path, name: str, values: list[object], message: str) -> None:
    scales = json.loads((written / "policy.json").read_text())["scales"]
    change(written, scales=scales | {name: values})
    assert message in refusal(written)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"score_out__bias": None}, "score_out/bias is missing; take both files"),
        ({"extra": np.zeros(1, np.float32)}, "extra is no weight of this network"),
        ({"score_out__bias": np.zeros(2, np.float32)}, "score_out/bias is float32 [2], but the network"),
        (
            {"score_out__bias": np.zeros(1)},
            "score_out/bias is float64 [1], but the network",
        ),
        ({"score_out__bias": np.full(1, np.inf, np.float32)}, "score_out/bias holds a number that is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    written: Path, arrays: dict[str, np.ndarray | None], message: str
) -> None:
    change_weights(written, **arrays)
    assert refusal(written).startswith(f"{written / 'policy.safetensors'}: ")
    assert message in refusal(written)


def test_damaged_files_are_one_line(written: Path, tmp_path: Path) -> None:
    write_policy(random_policy(seed=1), tmp_path / "other")
    other = (tmp_path / "other" / "policy.safetensors").read_bytes()
    (written / "policy.safetensors").write_bytes(other)
    assert "policy.safetensors: is not the file that policy.json was written with; take both files" in refusal(written)
    (written / "policy.safetensors").write_bytes(b"no tensors")
    change(written, weights_sha256=hashlib.sha256(b"no tensors").hexdigest())
    assert "policy.safetensors: is no safetensors file that NumPy reads" in refusal(written)
    (written / "policy.json").write_text("{")
    assert "policy.json: is no JSON (" in refusal(written)
    (written / "policy.json").write_text("[]")
    assert "policy.json: must hold an object" in refusal(written)
    (written / "policy.json").write_bytes(b"\xff\xfe\x00")
    assert "policy.json: is no JSON (" in refusal(written)


def test_reading_and_running_imports_no_jax() -> None:
    code = "import sys, jaxroute.policies.runner, jaxroute.policies.folder; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
