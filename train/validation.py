"""Whole greedy episodes on requests that are neither trained nor evaluated on, relative to round robin.

Axis letters: E lanes of a group.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.devices import AXIS, lane_sharding, on_host, placed, whole_sharding
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.errors import InputError
from jaxroute.evaluate import FIRST_SEED
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.config import TrainConfig
from jaxroute.train.episode import Greedy, Outcome, play
from jaxroute.train.evolution import references
from jaxroute.train.figures import UNFINISHED as UNFINISHED
from jaxroute.train.figures import Figures as Figures
from jaxroute.train.scenarios import Group, make_groups
from jaxroute.train.state import Params

MOST_LANES = 16
"""Of a group: enough to tell a percent, few enough to take a small share of a run."""


class Validator:
    """The validation episodes of a run, and round robin's figures on them, run once.

    Attributes:
      groups: what is played, one table in each lane.
    """

    def __init__(self, config: TrainConfig, network: Scorer, mesh: jax.sharding.Mesh) -> None:
        """Makes the episodes.

        Args:
          config: of the run.
          network: the policy's.
          mesh: one axis, `lanes`.

        Raises:
          InputError: training uses so many seeds that none are left.
        """
        self.groups = validation_groups(config, mesh.size)
        self._network = network
        self._mesh = mesh
        self._params = [placed(group.params, lane_sharding(mesh)) for group in self.groups]
        known = [references(group.env, own, mesh=mesh) for group, own in zip(self.groups, self._params, strict=True)]
        self._reference = [jax.tree.map(lambda leaf: leaf[:, 0], on_host(each)) for each in known]

    def __call__(self, policy: Params, scales: FeatureScales) -> Figures:
        """Lets the policy take its likeliest action throughout.

        Args:
          policy: the scorer's weights, on the host.
          scales: of its features, likewise.
        """
        policy, scales = placed((policy, scales), whole_sharding(self._mesh))
        outcomes = [
            on_host(greedy_outcomes(group.env, self._network, policy, scales, own, mesh=self._mesh))
            for group, own in zip(self.groups, self._params, strict=True)
        ]
        return figures_of(_joined(outcomes), _joined(self._reference))


@partial(jax.jit, static_argnames=("env", "network", "mesh"))
def greedy_outcomes(
    env: ClusterRouting,
    network: Scorer,
    policy: Params,
    scales: FeatureScales,
    params: EnvParams,
    *,
    mesh: jax.sharding.Mesh,
) -> Outcome:
    """What the first workload of every lane costs under a policy; [E] leaves.

    Args:
      env: of the group.
      network: the policy's.
      policy: its weights.
      scales: of its features.
      params: [E] leaves, spread over the mesh.
      mesh: one axis, `lanes`.
    """

    def local(policy: Params, scales: FeatureScales, own: EnvParams) -> Outcome:
        first = jnp.zeros(own.penalty_weight.shape, jnp.int32)
        greedy = Greedy(network, env.observation, policy, scales)
        return play(env, greedy, own, first, jax.random.key(0), records=True)

    over, whole = jax.sharding.PartitionSpec(AXIS), jax.sharding.PartitionSpec()
    program = jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, over), out_specs=over, check_vma=False)
    return program(policy, scales, params)


def figures_of(outcome: Outcome, reference: Outcome) -> Figures:
    """The figures of a policy; [E] leaves on the host each."""
    ended = (np.asarray(outcome.complete) > 0) & (np.asarray(reference.complete) > 0)

    def change(field: str) -> float:
        own, other = (np.asarray(getattr(each, field), np.float64)[ended] for each in (outcome, reference))
        return float(np.mean(own / other) - 1) if ended.any() else math.nan

    return Figures(
        e2e_mean=change("e2e_mean"),
        e2e_p99=change("e2e_p99"),
        ttft_p99=change("ttft_p99"),
        makespan=change("makespan"),
        incomplete=float(1 - np.mean(np.asarray(outcome.complete, np.float64))),
    )


def validation_groups(config: TrainConfig, devices: int) -> tuple[Group, ...]:
    """Groups like those of the run, of other fleets, with one table in each lane.

    The seeds of their tables are the highest block below 1,000,000 of which the run (any of its `seeds`) trains on
    none; blocks are as long as there are validation lanes, and begin at multiples of that.

    Args:
      config: the run's.
      devices: the lanes of each group are a multiple of it, at most `MOST_LANES` where that is possible.

    Raises:
      InputError: the run trains on every block.
    """
    fleets = tuple(
        dataclasses.replace(each, lanes=max(1, min(each.lanes, MOST_LANES) // devices) * devices)
        for each in config.fleets
    )
    length = sum(each.lanes for each in fleets)
    per_run = config.workloads.tables * sum(each.lanes for each in config.fleets)
    trained = np.zeros(FIRST_SEED, bool)
    trained[np.arange(config.seed * per_run, (config.seed + config.seeds) * per_run) % FIRST_SEED] = True
    blocks = trained[: FIRST_SEED // length * length].reshape(-1, length)
    free = np.flatnonzero(~blocks.any(axis=1))
    if not free.size:
        raise InputError(
            f"{per_run * config.seeds:,} workload tables leave no seeds for validation; "
            "lower seeds, workloads.tables or fleets.lanes"
        )
    workloads = dataclasses.replace(config.workloads, tables=1)
    return make_groups(dataclasses.replace(config, seed=int(free[-1]), seeds=1, fleets=fleets, workloads=workloads))


def _joined(outcomes: list[Outcome]) -> Outcome:
    """The lanes of all groups one after the other."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *outcomes)
