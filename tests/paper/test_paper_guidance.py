"""Part (j): what learning curves of training runs say."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.impact import head_mixing_rewards
from jaxroute.leaderboard.store import Store
from jaxroute.make_env import make
from jaxroute.paired import Interval
from jaxroute.paper import guidance
from jaxroute.paper.guidance_curves import read_curve
from jaxroute.paper.measure import Setting, fleet
from jaxroute.paper.part import QUICK, Context, Unavailable
from jaxroute.paper.reward_parts import RewardParts, measurement
from jaxroute.paper.variants import VARIANTS
from jaxroute.train.load_config import load_config, shipped_configs
from jaxroute.train.scalars import COLUMNS, FILE
from views import view


def write_run(folder: Path, gains: dict[int, list[float]], **columns: list[float]) -> Path:
    """A `metrics.csv` with one validation after each update of each seed."""
    folder.mkdir(parents=True)
    with (folder / FILE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS, restval="")
        rows.writeheader()
        for update in range(len(next(iter(gains.values())))):
            for seed, values in gains.items():
                own = {name: each[update] for name, each in columns.items()}
                row = {
                    "stage": "ppo",
                    "update": update + 1,
                    "env_steps": 1000 * (update + 1),
                    "seed": seed,
                    "seconds": 1,
                }
                rows.writerow({**row, "hold_share": 0.25, "valid_e2e_mean": values[update], **own})
    return folder


PARTS = RewardParts(
    mean=Interval(-300.0, -310.0, -290.0, 2),
    spread=Interval(200.0, 190.0, 210.0, 2),
    jump=Interval(30.0, 29.0, 31.0, 2),
    penalty_range=Interval(1.5, 1.4, 1.6, 2),
)

RUNS = {
    "baseline-curve": {0: [0.10, 0.0, -0.06], 1: [0.20, 0.02, -0.08]},
    "aware-curve": {0: [0.0, -0.05, -0.06], 1: [0.1, -0.05, -0.08]},
    "guided-curve": {0: [-0.05, -0.05, -0.07], 1: [0.05, -0.05, -0.09]},
}


@pytest.fixture
def findings(tmp_path: Path, monkeypatch):
    folders = {name: write_run(tmp_path / name, gains) for name, gains in RUNS.items()}
    own = {"exploration": [0.8, 0.4, 0.0], "penalty_weight": [1.0, 0.02, 0.0]}
    folders["dqn"] = write_run(tmp_path / "dqn", {0: [0.5, 0.2, 0.1]}, **own)

    def trained(self: Context, name: str) -> Path:
        if name not in folders:
            raise Unavailable(f"{name}: left out")
        return folders[name]

    def measure(context, settings, policies):
        columns = {"e2e_mean_s": np.array([40.0, 42.0]), "makespan_s": np.array([190.0, 192.0])}
        lower = {name: 0.99 * values for name, values in columns.items()}
        return [{policies[0].name: columns, policies[1].name: lower}]

    monkeypatch.setattr(Context, "trained", trained)
    monkeypatch.setattr(guidance, "measure", measure)
    monkeypatch.setattr(guidance, "reward_parts", lambda context, setting: PARTS)
    effort = dataclasses.replace(QUICK, seeds=2)
    return guidance.PART.run(Context(tmp_path, effort, 1_000_000, Store(tmp_path / "cache")))


def test_a_curve_is_read_seed_by_seed(tmp_path: Path):
    curve = read_curve("plain", write_run(tmp_path / "run", RUNS["baseline-curve"]) / FILE)
    np.testing.assert_allclose(curve.first(), [10, 20])
    np.testing.assert_allclose(curve.whole(), [4 / 3, 14 / 3])
    np.testing.assert_allclose(curve.settled(), [-6, -8])
    assert (curve.first_steps, curve.hold_share) == (1000, 0.25)
    assert len(curve.exploration) == 0


def test_a_run_without_a_validation_is_refused(tmp_path: Path):
    folder = write_run(tmp_path / "run", {0: [""]})  # type: ignore[list-item]
    with pytest.raises(InputError, match="holds no validation; train for longer"):
        read_curve("plain", folder / FILE)


def test_guidance_is_compared_with_none_seed_by_seed(findings):
    learned, differences = findings.tables
    assert [row.name for row in learned.rows] == [*guidance.PPO.values(), *guidance.QUICK_DQN.values()]
    assert learned.rows[0].cells[0].value.value == pytest.approx(15)
    assert [cell.text for cell in learned.rows[0].cells[3:]] == ["-8.0 to -6.0", "25", "2"]
    guided = differences.rows[1]
    assert [cell.value.value for cell in guided.cells] == pytest.approx([-15, -22 / 3, -1])
    assert guided.cells[0].value.low == pytest.approx(-15)
    assert len(findings.cuts) == 1
    assert all(command.startswith("jaxroute train --config") for command in findings.commands)


def test_the_remarks_name_the_rule_that_is_imitated_and_when_exploration_ends(findings):
    text = " ".join(findings.remarks)
    assert "constant guidance takes 3.44 points of the makespan off its baseline, decaying guidance 7.08" in text
    assert "a mean E2E -1.0 % [-1.0, -1.0] and a makespan -1.0 %" in text
    assert "weighs less than 0.01 from episode 10 on" in text
    # While guidance weighed anything, in the first two of three updates: 0.8 and 0.4.
    assert "0.01 or more 60 % of the actions were random (40 % over the whole training)" in text
    assert "with -300 on average without it, with a standard deviation of 200, of which 30 is new" in text
    # 2 (30 / 1.5)^2.
    assert "told apart from 800 samples of one state" in text
    assert [picture.name for picture in findings.pictures] == ["j-learning", "j-schedule"]


def test_the_penalty_alone_as_reward_is_set_beside_the_papers_reward(tmp_path: Path):
    gains = {"dqn-curve": [0.9, 0.6, 0.5], "dqn-mixing-curve": [0.1, -0.02, -0.06]}
    curves = {name: read_curve(name, write_run(tmp_path / name, {0: own}) / FILE) for name, own in gains.items()}
    imitated = {"e2e_mean_s": Interval(-1.0, -1.2, -0.8, 2), "makespan_s": Interval(-2.0, -2.2, -1.8, 2)}
    text = " ".join(guidance.remarks(curves, imitated, PARTS))
    assert "Double DQN is at -6.0 % in its last third, after 30 % of the intervals" in text
    assert "with the paper's reward at +50.0 %" in text
    assert "It is not the algorithm" not in " ".join(guidance.remarks({}, imitated, PARTS))


@pytest.mark.parametrize(
    ("plain", "guided", "verdict", "left"),
    [
        ([-0.01, -0.02, -0.04], [-0.01, -0.03, -0.09], "-5.0 [-5.0, -5.0] in the last third (it helps)", "So 75 % of"),
        ([-0.06, -0.02, -0.04], [-0.01, -0.03, -0.03], "+1.0 [+1.0, +1.0] in the last third (it harms)", "loses some"),
        ([0.01, 0.02, 0.03], [0.01, 0.02, 0.03], "+0.0 [+0.0, +0.0] in the last third (no difference", "at +3.0 %."),
    ],
)
def test_the_remark_on_guidance_follows_the_curves(tmp_path: Path, plain, guided, verdict, left):
    gains = {"baseline-curve": {0: plain, 1: plain}, "guided-curve": {0: guided, 1: guided}}
    curves = {name: read_curve(name, write_run(tmp_path / name, own) / FILE) for name, own in gains.items()}
    imitated = {"e2e_mean_s": Interval(-1.0, -1.2, -0.8, 2), "makespan_s": Interval(-2.0, -2.2, -1.8, 2)}
    text = guidance.remarks(curves, imitated, PARTS)[0]
    assert verdict in text
    assert left in text


def test_a_variant_that_cannot_be_trained_is_left_out_and_named(tmp_path: Path, monkeypatch):
    def trained(self: Context, name: str) -> Path:
        if name == "dqn":
            raise Unavailable("dqn: left out, no such configuration")
        return write_run(tmp_path / name, RUNS[name])

    monkeypatch.setattr(Context, "trained", trained)
    columns = {"e2e_mean_s": np.ones(2), "makespan_s": np.ones(2)}
    monkeypatch.setattr(guidance, "measure", lambda c, s, policies: [{each.name: columns for each in policies}])
    monkeypatch.setattr(guidance, "reward_parts", lambda context, setting: PARTS)
    context = Context(tmp_path, dataclasses.replace(QUICK, seeds=2), 1_000_000, Store(tmp_path / "cache"))
    found = guidance.PART.run(context)
    assert found.remarks[0] == "dqn: left out, no such configuration"
    assert [picture.name for picture in found.pictures] == ["j-learning"]


def test_among_equal_servers_the_penalty_is_least_for_the_fewest_tokens_in_flight():
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(0, 5000, 3)
        seen = view(in_flight_tokens=tokens, head_prompt_tokens=int(rng.integers(1, 2000)))
        assert int(np.argmax(np.asarray(head_mixing_rewards(seen, np)))) == int(np.argmin(tokens))


@pytest.mark.slow
def test_the_parts_of_the_reward_are_those_of_the_environment_step_by_step():
    setting = Setting("small", fleet(instances=2, kv_tokens=1200), requests=25, rate_per_s=20.0)
    found = measurement(setting, 3)()
    env, params = make(
        fleet=setting.fleet, tables=[setting.table(3)], prediction="0.8", reward="paper", observation="paper", seed=3
    )
    step = jax.jit(env.step_env)
    _, state = env.reset_env(jax.random.key(3), params)
    rewards, ranges, jumps, last, sent, ended = [], [], [], 0.0, 0, False
    while not ended:
        seen = env.view(state, params)
        _, state, reward, ended, _ = step(jax.random.key(0), state, jnp.int32(sent % 2), params)
        if seen.queue_length > 0:
            impacts = np.asarray(head_mixing_rewards(seen, np))
            rewards.append(float(reward))
            ranges.append(impacts.max() - impacts.min())
            jumps.append(float(reward) - last)
            sent += 1
        last = float(reward)
    assert len(rewards) == 25
    expected = {
        "mean": np.mean(rewards),
        "spread": np.std(rewards),
        "jump": np.sqrt(np.mean(np.square(jumps)) / 2),
        "penalty_range": np.mean(ranges),
    }
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected["penalty_range"] > 0


@pytest.mark.parametrize("name", [*guidance.PPO, *guidance.DQN, *guidance.ALONE, *guidance.QUICK_DQN])
def test_every_variant_has_a_configuration_that_can_be_loaded(name: str):
    variant = VARIANTS[name]
    if variant.config not in shipped_configs():
        pytest.skip(f"this version has no configuration {variant.config}")
    config = load_config(variant.config, variant.settings(name, 200_000))
    assert config.seeds == (1 if name == "dqn" else 3)
    assert config.name == name
