"""A problem that PPO solves in seconds: of two servers, one runs a single request at a time.

As a script it runs `UPDATES` updates over as many devices as there are, and writes the policy's weights:
`python uneven.py FILE.npz`.
"""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from tiny import V100, config_of, make_group, on_mesh, states_of

from jaxroute.devices import lane_mesh
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.simulate import Fleet
from jaxroute.train.config import TrainConfig
from jaxroute.train.ppo import make_learner, run_updates
from jaxroute.train.state import TrainState
from jaxroute.train.update import Learner
from jaxroute.workload.table import RequestTable

LANES, UPDATES, SEED = 8, 2, 4
FLEET = Fleet((V100, dataclasses.replace(V100, max_num_seqs=1)), ("chunked",) * 2)


def table(seed: int) -> RequestTable:
    """Sixty short requests at a rate that one server could bear."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(1 / 6, 60))
    return RequestTable.create(arrival_s, rng.integers(50, 200, 60), rng.integers(10, 40, 60), name="short")


def problem() -> tuple[ClusterRouting, EnvParams]:
    """The environment and the parameters of all lanes."""
    return make_group([FLEET] * LANES, [[table(2 * lane), table(2 * lane + 1)] for lane in range(LANES)])


def config() -> TrainConfig:
    """Of a run of 200 updates, of which the tests run the first few."""
    return config_of(
        LANES,
        network={"holds": False},
        total_steps=200 * LANES * 128,
        rollout=128,
        minibatches=4,
        epochs=4,
        learning_rate=3e-3,
        final_learning_rate=3e-3,
    )


def trained(learner: Learner, params: EnvParams, states: TrainState, devices: int) -> TrainState:
    """The runs after `UPDATES` updates over that many devices."""
    mesh = lane_mesh(devices)
    params, states = on_mesh(params, states, mesh)
    return run_updates(learner, (params,), states, mesh=mesh, count=UPDATES)[0]


def weights_of(states: TrainState, run: int) -> np.ndarray:
    """Flat weights of one run's policy and critic."""
    return np.asarray(ravel_pytree(jax.tree.map(lambda leaf: leaf[run], (states.policy, states.critic)))[0])


def main(path: str) -> None:
    """See the module's docstring."""
    env, params = problem()
    learner = make_learner(config(), (env,))
    after = trained(learner, params, states_of(learner, params, SEED), len(jax.devices()))
    np.savez(path, weights=weights_of(after, 0), devices=len(jax.devices()))


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(sys.argv[1])
