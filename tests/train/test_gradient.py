"""Learning by gradient through the relaxed fleet."""

from __future__ import annotations

import csv
import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxroute.errors import InputError
from jaxroute.policies.folder import read_policy
from jaxroute.simulate import Fleet
from jaxroute.train import gradient, gradient_stage, gradient_update, run_folder
from jaxroute.train.config import GradientConfig, RewardConfig, TrainConfig
from jaxroute.train.gradient_state import GradientState
from jaxroute.train.gradient_update import GradientLearner
from jaxroute.train.gradient_window import play_window
from jaxroute.train.load_config import load_config
from jaxroute.train.loop import Training

SMALL = GradientConfig(total_steps=24 * 4 * 128, window=128, rows=48, critic_passes=4, learning_rate=0.02)
UNEVEN = Fleet((tiny.V100, tiny.H100), ("chunked",) * 2)


def config_of(own: GradientConfig = SMALL) -> TrainConfig:
    config = tiny.config_of(4, network={"holds": False}, total_steps=0)
    return dataclasses.replace(config, reward=RewardConfig(horizon_s=10.0), gradient=own)


@pytest.mark.parametrize("estimator", ["gumbel", pytest.param("expected", marks=pytest.mark.slow)])
def test_a_few_updates_learn_which_server_is_the_fast_one(estimator: str) -> None:
    """From an indifferent policy, whose draws are those of random routing; the same noise before and after."""
    config = config_of(dataclasses.replace(SMALL, estimator=estimator))
    env, params = tiny.five_task_lanes(UNEVEN, 4, requests=40, rate=6.0)
    learner = gradient.make_learner(config, (env,))
    start = gradient.initial_state(learner, (params,), jax.random.key(0))
    step = jax.jit(partial(gradient_update.update, learner))
    state = start
    for _ in range(learner.updates):
        state, metrics = step((params,), state)
        assert all(np.isfinite(value) for value in metrics)
    judge = jax.jit(partial(mean_reward, learner, params, start))
    before = judge(start.policy, state.scales.fixed())
    after = judge(state.policy, state.scales.fixed())
    assert float(after) > 0.8 * float(before)
    assert float(metrics.gradient_norm) > 0
    assert float(metrics.entropy) < 0.68


def mean_reward(
    learner: GradientLearner,
    params: tiny.EnvParams,
    start: GradientState,
    policy: tiny.Params,
    scales: tiny.FeatureScales,
) -> jax.Array:
    """Of draws over the first lanes with eight keys."""
    keys = jax.random.split(jax.random.key(7), 8)

    def one(key: jax.Array) -> jax.Array:
        rules = learner.rules[0]
        rules = rules._replace(gradient=dataclasses.replace(rules.gradient, window=512))
        return jnp.mean(play_window(rules, policy, scales, params, start.groups[0], key)[1].reward)

    return jnp.mean(jax.lax.map(one, keys))


@pytest.mark.slow
def test_a_run_is_validated_exported_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_stage, "CALL_STEPS", 2 * 2 * 4 * 32)
    config = load_config(
        "smoke",
        [
            "ppo.total_steps=0",
            "evolution.generations=0",
            "network.holds=false",
            "gradient.total_steps=512",
            "gradient.window=32",
            "gradient.rows=32",
            "gradient.critic_passes=2",
            "seeds=2",
        ],
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        run_folder.begin(out, config)
    assert Training(config, whole, Silent()).run()
    assert not Training(config, cut, Silent()).run(lambda: True)
    assert Training(config, cut, Silent()).run()
    for out in (whole, cut):
        policy = read_policy(out / "policy")
        assert policy.training["stage"] == "gradient"
        with (out / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [int(row["update"]) for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4]
        assert rows[-1]["valid_e2e_mean"] and rows[-1]["gradient_norm"]
    one, other = (read_policy(out / "policy").weights for out in (whole, cut))
    assert all(np.array_equal(one[name], other[name]) for name in one)


class Silent:
    """Watches without a word."""

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        assert stage == "gradient"

    def said(self, text: str) -> None:
        assert "round robin" in text


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network.holds=true", "network.holds"),
        ("reward.kind=paper", "reward.kind"),
        ("fleets.0.router_order=shortest-predicted", "fleets.0.router_order"),
    ],
)
def test_what_cannot_be_derived_is_refused(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config("gradient", [override])
