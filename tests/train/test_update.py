"""Updates: the same over any number of devices and seeds, without the host, and for the better."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import uneven
from tiny import on_mesh, states_of

from jaxroute.devices import lane_mesh
from jaxroute.env_types import EnvParams
from jaxroute.train.ppo import make_learner, run_updates
from jaxroute.train.state import TrainState
from jaxroute.train.update import Learner

SEEDS = (uneven.SEED, 7)


@pytest.fixture(scope="module")
def made() -> tuple[Learner, EnvParams]:
    env, params = uneven.problem()
    return make_learner(uneven.config(), (env,)), params


@pytest.fixture(scope="module")
def alone(made: tuple[Learner, EnvParams]) -> np.ndarray:
    """Weights of the first seed after two updates, on one device and without a second seed."""
    learner, params = made
    return uneven.weights_of(uneven.trained(learner, params, states_of(learner, params, uneven.SEED), 1), 0)


def moved(learner: Learner, params: EnvParams, weights: np.ndarray, seed: int) -> float:
    """How far the weights have come from where they began."""
    return float(np.abs(weights - uneven.weights_of(states_of(learner, params, seed), 0)).max())


def shares(states: TrainState) -> np.ndarray:
    """[K] of the requests of the episodes in progress, the share that was sent to the first server."""
    engines = states.groups[0].env.cluster.engines
    sent = np.asarray(engines.finished + engines.running + engines.queue.count).sum(1)
    return sent[:, 0] / sent.sum(1)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(made: tuple[Learner, EnvParams], alone: np.ndarray, tmp_path: Path) -> None:
    learner, params = made
    flags = os.environ["XLA_FLAGS"].replace("_device_count=2", "_device_count=8")
    script = [sys.executable, uneven.__file__, str(tmp_path / "eight.npz")]
    subprocess.run(script, env=os.environ | {"XLA_FLAGS": flags}, check=True)
    eight = np.load(tmp_path / "eight.npz")
    assert int(eight["devices"]) == 8
    assert moved(learner, params, alone, uneven.SEED) > 0.03
    np.testing.assert_allclose(eight["weights"], alone, atol=1e-4)


def test_two_seeds_side_by_side_are_two_runs_and_learn_to_spare_the_slow_server(
    made: tuple[Learner, EnvParams], alone: np.ndarray
) -> None:
    learner, params = made
    mesh = lane_mesh(1)
    params, states = on_mesh(params, states_of(learner, params, *SEEDS), mesh)
    assert shares(states).tolist() == pytest.approx([0.5, 0.5], abs=0.05)
    gains = []
    for call in range(15):
        # Nothing goes to the host or comes from it.
        with jax.transfer_guard("disallow"):
            states, metrics = run_updates(learner, (params,), states, mesh=mesh, count=uneven.UPDATES)
        gains.append(np.asarray(metrics.gain))
        if call == 0:
            np.testing.assert_allclose(uneven.weights_of(states, 0), alone, atol=1e-4)
            assert np.abs(uneven.weights_of(states, 1) - alone).max() > 0.1
    assert states.update.tolist() == [30, 30]
    assert (shares(states) > 0.8).all()
    # Less time in the system than beside it under round robin.
    assert (np.concatenate(gains[-5:]).mean(0) > 0.08).all()
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in metrics)
