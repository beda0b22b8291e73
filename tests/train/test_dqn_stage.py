"""Whole runs of Double DQN: validation, checkpoints, and the policy folder."""

from __future__ import annotations

import csv
from pathlib import Path

import chex
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxroute.candidates import candidate
from jaxroute.errors import InputError
from jaxroute.policies.folder import read_policy
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from jaxroute.train import dqn_stage, run_folder
from jaxroute.train.load_config import load_config
from jaxroute.train.loop import Training

OVERRIDES = [
    "ppo.total_steps=0",
    "evolution.generations=0",
    "seeds=2",
    "network.form=state",
    "network.observation=paper",
    "network.prior=none",
    "reward.kind=paper",
    "reward.guidance=decaying",
    "dqn.total_steps=512",
    "dqn.rollout=32",
    "dqn.passes=4",
    "dqn.batch=16",
    # Of three rollouts: the fourth overwrites the first.
    "dqn.replay=384",
    "dqn.target_every=6",
]


class Silent:
    """Watches without a word."""

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        assert (stage, total) == ("dqn", 4)

    def said(self, text: str) -> None:
        assert "round robin" in text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one that was stopped after each of its two calls."""
    config = load_config("smoke", OVERRIDES)
    whole, cut = (tmp_path_factory.mktemp(name) / "run" for name in ("whole", "cut"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn_stage, "CALL_STEPS", 2 * 2 * 4 * 32)
        for out in (whole, cut):
            run_folder.begin(out, config)
        assert Training(config, whole, Silent()).run()
        assert not Training(config, cut, Silent()).run(lambda: True)
        assert Training(config, cut, Silent()).run()
    return whole, cut


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return [{**row, "seconds": ""} for row in csv.DictReader(file)]


def test_a_run_that_was_stopped_ends_as_if_it_had_not(runs: tuple[Path, Path]) -> None:
    states = []
    for out in runs:
        manager = ocp.CheckpointManager((out / run_folder.CHECKPOINTS).resolve())
        assert manager.latest_step() == 4
        states.append(manager.restore(4, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state)
        manager.close()
    chex.assert_trees_all_equal(*states)
    assert rows_of(runs[0]) == rows_of(runs[1])
    for name in ("policy.json", "policy.safetensors"):
        assert (runs[0] / "policy" / name).read_bytes() == (runs[1] / "policy" / name).read_bytes()


def test_every_update_of_every_seed_has_a_row(runs: tuple[Path, Path]) -> None:
    rows = rows_of(runs[0])
    assert [(row["stage"], int(row["update"]), int(row["seed"])) for row in rows] == [
        ("dqn", update, seed) for update in range(1, 5) for seed in (0, 1)
    ]
    assert [int(row["env_steps"]) for row in rows[::2]] == [128, 256, 384, 512]
    assert rows[-1]["valid_e2e_mean"] and rows[-1]["value_loss"] and rows[0]["exploration"]
    assert rows[0]["value"] != rows[1]["value"]
    # Guidance decays from 1, and the discount grows from 0.
    assert (float(rows[0]["penalty_weight"]), float(rows[0]["discount"])) == (1, 0)
    assert float(rows[-1]["penalty_weight"]) == pytest.approx(np.exp(-0.5 * 20 * 0.75), rel=1e-4)
    assert any("tfevents" in path.name for path in runs[0].iterdir())


def test_the_policy_is_for_fleets_of_its_size_only(runs: tuple[Path, Path]) -> None:
    file = read_policy(runs[0] / "policy")
    assert (file.network.form, file.network.instances, file.network.activation) == ("state", 2, "relu")
    assert file.training["stage"] == "dqn"
    found = candidate(str(runs[0]))
    server = load_profile("v100-32gb-llama2-7b")
    assert found.fleet(Fleet((server,) * 2, ("chunked",) * 2)).buckets == 7
    with pytest.raises(InputError, match=r"was trained for 2 instances and cannot route for 3; give a fleet of 2"):
        found.fleet(Fleet((server,) * 3, ("chunked",) * 3))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("ppo.total_steps=100", "--set ppo.total_steps is 100, must be 0 with dqn.total_steps"),
        ("evolution.generations=1", "--set evolution.generations is 1, must be 0 with dqn.total_steps"),
        ("dqn.batch=500", "--set dqn.batch is 500, must be a multiple of the lanes, 16 in all"),
        ("dqn.replay=1000", "--set dqn.replay is 1000, must be at least 2048"),
        ("dqn.steps=128", "--set dqn.steps is 128, must be below dqn.rollout = 128"),
        ("dqn.exploration=1.1", "--set dqn.exploration is 1.1, must be from 0 to 1"),
        ("network.prior=gate", "network.prior is 'gate', must be none with"),
        ("dqn.total_steps=0", "must be above 0, or gradient.total_steps or evolution.generations or dqn.total_steps"),
    ],
)
def test_what_cannot_be_trained_is_refused(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config("dqn", [override])
    assert said in str(caught.value)


def test_the_other_algorithms_train_scorers_only() -> None:
    with pytest.raises(InputError, match=r"network.form is 'state', must be scorer without dqn.total_steps"):
        load_config("smoke", ["network.form=state", "network.prior=none"])


def test_the_shipped_configuration_is_the_papers() -> None:
    config = load_config("dqn")
    own = config.dqn
    assert (config.network.hidden, config.network.form, config.network.observation) == ((64, 64), "state", "paper")
    assert (own.batch, own.exploration, own.exploration_decay, own.exploration_episodes) == (512, 0.99, 0.5, 30)
    assert (config.fleets[0].dt, config.reward.kind, config.reward.guidance) == (0.02, "paper", "decaying")
