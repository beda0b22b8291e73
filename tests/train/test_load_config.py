from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.train import load_config as module
from jaxroute.train.config import FleetsConfig, PpoConfig, TrainConfig, WorkloadsConfig
from jaxroute.train.load_config import load_config, shipped_configs, to_toml

TEXT = """
name = "mixed"
seeds = 2
[[fleets]]
instances = 2
[[fleets]]
lanes = 8
profiles = ["v100-32gb-llama2-7b", "h100-80gb-llama2-7b"]
mixed = 1
[workloads]
loads = [0.5, 1]
[ppo]
learning_rate = 3e-4
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "mixed.toml"
    path.write_text(TEXT)
    return str(path)


def message(path: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    return str(path)


def test_what_the_file_leaves_out_has_its_default(file: str) -> None:
    config = load_config(file)
    assert config == TrainConfig(
        name="mixed",
        seeds=2,
        fleets=(
            FleetsConfig(instances=2),
            FleetsConfig(lanes=8, profiles=("v100-32gb-llama2-7b", "h100-80gb-llama2-7b"), mixed=1.0),
        ),
        workloads=WorkloadsConfig(loads=(0.5, 1.0)),
        ppo=PpoConfig(learning_rate=3e-4),
    )
    assert hash(config) == hash(load_config(file))


def test_an_empty_file_is_the_default_run(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == TrainConfig()


def test_whole_numbers_pass_for_floats(file: str) -> None:
    config = load_config(file)
    assert (type(config.fleets[1].mixed), type(config.workloads.loads[1])) == (float, float)


def test_overrides_reach_every_level(file: str) -> None:
    config = load_config(
        file,
        [
            "seed=7",
            "name=other run",
            "ppo.learning_rate=1",
            "fleets.1.lanes=64",
            "fleets.0.router_order = shortest-predicted",
            "workloads.loads=[0.25, 0.75]",
            'workloads.predictions=["oracle", "none"]',
            "network.holds=false",
        ],
    )
    assert (config.seed, config.name, config.ppo.learning_rate) == (7, "other run", 1.0)
    assert [(each.lanes, each.router_order) for each in config.fleets] == [(32, "shortest-predicted"), (64, "fcfs")]
    assert config.workloads.loads == (0.25, 0.75)
    assert config.workloads.predictions == ("oracle", "none")
    assert config.network.holds is False


def test_the_last_of_several_overrides_counts(file: str) -> None:
    assert load_config(file, ["seed=1", "seed=2"]).seed == 2


def test_an_override_reaches_the_default_fleets(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ""), ["fleets.0.lanes=3"])
    assert config.fleets == (FleetsConfig(lanes=3),)


def test_a_resolved_configuration_loads_back_equal(file: str, tmp_path: Path) -> None:
    config = dataclasses.replace(load_config(file), name='say "hi"')
    text = to_toml(config)
    assert text.count("[[fleets]]") == 2
    assert load_config(written(tmp_path, text)) == config


def test_shipped_configurations_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in shipped_configs():
        assert load_config(name) == load_config(f"{name}.toml")
    (tmp_path / "small.toml").write_text("seed = 5")
    monkeypatch.setattr(module, "shipped_configs", lambda: {"small": tmp_path / "small.toml"})
    assert load_config("small").seed == 5
    assert "no such shipped configuration; shipped: small" in message("large")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = ")
    assert message(path).startswith(f"{path}: not TOML (")
    assert f"{tmp_path}" in message(str(tmp_path))
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe")
    assert "cannot be read" in message(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sede = 1", "sede is an unknown key; known: name, seed, seeds"),
        ("[ppo]\nrate = 1", "ppo.rate is an unknown key; known: total_steps, rollout"),
        ("[[fleets]]\n[[fleets]]\nsize = 1", "fleets.1.size is an unknown key; known: instances"),
        ("ppo = 1", "ppo is 1, must be a table"),
        ("[fleets]\nlanes = 1", "fleets is {'lanes': 1}, must be a list"),
        ("fleets = [1]", "fleets.0 is 1, must be a table"),
        ("seed = 1.0", "seed is 1.0, must be a whole number"),
        ("seed = true", "seed is True, must be a whole number"),
        ("[ppo]\nclip = true", "ppo.clip is True, must be a finite number"),
        ("[ppo]\nclip = nan", "ppo.clip is nan, must be a finite number"),
        ("[network]\nholds = 1", "network.holds is 1, must be true or false"),
        ("[network]\nhidden = 32", "network.hidden is 32, must be a list"),
        ('[network]\nhidden = ["a"]', "network.hidden.0 is 'a', must be a whole number"),
        ("[workloads]\nloads = [1]", "workloads.loads is [1], must be a list of 2"),
        ('[reward]\nkind = "speed"', "reward.kind is 'speed'; known: latency, paper"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    assert message(path).startswith(f"{path}: {said}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('fleets.0.profiles=["tpu"]', "of which 'tpu': profile 'tpu': no such shipped profile"),
        ('fleets.0.schedulers=["best"]', "which is unknown; known: prefill-first, chunked, whole-prompt"),
        ("fleets.0.router_order=lifo", "is 'lifo', which is unknown; known: fcfs, shortest-predicted"),
        ('workloads.names=["x"]', "workload 'x': no such workload and no such file"),
        ('workloads.predictions=["1.5"]', "must be oracle, none, confusion, confusion:FOLDER or a probability"),
        ("ppo.twin=best", "which is unknown; known: none, random, round-robin"),
        ("ppo.teacher=best", "which is unknown; known: none, random"),
        ("network.observation=paper", "must be none with the paper's observation"),
        ("fleets.0.lanes=0", "is 0, must be at least 1"),
        ("fleets.0.mixed=1.5", "is 1.5, must be from 0 to 1"),
        ("fleets.0.dt=0", "is 0.0, must be above 0"),
        ("fleets.0.kv_tokens=[]", "must not be empty"),
        ("fleets=[]", "fleets is empty, must not be empty"),
        ("workloads.requests=1", "must be at least 2, or 0"),
        ("workloads.loads=[1.5, 0.5]", "must be the least and then the most"),
        ("workloads.loads=[0, 0.5]", "of which 0.0: must be above 0"),
        ("workloads.scrape_s=[0.2, 0.1]", "must be the least and then the most"),
        ("ppo.rollout=510", "is 510, must be a multiple of ppo.minibatches = 4"),
        ("ppo.learning_rate=-1", "is -1.0, must be above 0"),
        ("seed=-1", "is -1, must be at least 0"),
        ("seed=999999", "is 999999, must be at most 999998: evaluation"),
        ("seeds=0", "is 0, must be at least 1"),
    ],
)
def test_bad_values_are_refused_where_they_come_from(file: str, override: str, said: str) -> None:
    text = message(file, override)
    assert said in text
    # What two keys decide together may be said of the one that was not overridden.
    if "observation" not in override:
        assert text.startswith(f"--set {override.partition('=')[0]} is ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "must be key=value"),
        ("ppo..clip=1", "must be key=value"),
        ("fleets.2.lanes=1", "'2' must be a number from 0 to 1"),
        ("fleets.all.lanes=1", "'all' must be a number from 0 to 1"),
        ("seeds.first.second=1", "is inside of something that is no table"),
        ("seeds.first=1", "seeds is no table"),
        ("optimiser.name=adam", "optimiser is an unknown key"),
        ("ppo.rate=1", "--set ppo.rate is an unknown key"),
    ],
)
def test_bad_overrides_are_refused(file: str, override: str, said: str) -> None:
    assert said in message(file, override)
