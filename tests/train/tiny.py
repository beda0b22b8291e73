"""Training problems that are small enough for tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxroute.cluster.params import make_config
from jaxroute.devices import lane_sharding, placed
from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.make_env import env_params
from jaxroute.observation import GLOBAL_FEATURES, INSTANCE_FEATURES, Observed
from jaxroute.policies import HEURISTICS, Policy
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from jaxroute.train.capacities import stacked
from jaxroute.train.config import FleetsConfig, NetworkConfig, PpoConfig, TrainConfig
from jaxroute.train.ppo import initial_state, state_specs
from jaxroute.train.prior import with_prior
from jaxroute.train.rollout import Experience, collect
from jaxroute.train.state import Lanes, Params, TrainState
from jaxroute.train.update import Learner
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

V100 = dataclasses.replace(load_profile("v100-32gb-llama2-7b").with_kv_tokens(3000), max_num_seqs=16)
H100 = dataclasses.replace(load_profile("h100-80gb-llama2-7b").with_kv_tokens(3000), max_num_seqs=16)
TWO = Fleet((V100,) * 2, ("chunked",) * 2)
ROUND_ROBIN, LEAST_KV = HEURISTICS["round-robin"], HEURISTICS["least-kv"]


def short_requests(count: int = 6, gap_s: float = 0.06) -> RequestTable:
    """Requests of 20 prompt and 5 output tokens: an episode of less than a second."""
    return RequestTable.create([gap_s * number for number in range(count)], [20] * count, [5] * count, name="short")


def make_group(
    fleets: Sequence[Fleet],
    tables: Sequence[Sequence[RequestTable]],
    *,
    size: int | None = None,
    max_steps: int | None = None,
) -> tuple[ClusterRouting, EnvParams]:
    """An environment and the parameters of E lanes, each with a fleet and M tables of its own.

    Groups of one `size` (N) and number of lanes and tables run in the same compiled programs.
    """
    size = max(len(table) for own in tables for table in own) if size is None else size
    profiles = [profile for fleet in fleets for profile in fleet.profiles]
    config = make_config(profiles, queue_capacity=size, dt=fleets[0].dt, router_order=fleets[0].router_order)
    params = [
        env_params(fleet, own, [predict(table, "0.8", seed=0) for table in own], size=size, max_steps=max_steps)
        for fleet, own in zip(fleets, tables, strict=True)
    ]
    return ClusterRouting(config, len(fleets[0].profiles)), stacked(params)


def five_task_lanes(
    fleet: Fleet, lanes: int, *, requests: int = 40, rate: float = 10.0, tables: int = 2
) -> tuple[ClusterRouting, EnvParams]:
    """Lanes of one fleet, each with its own five-task tables."""
    numbers = [range(lane * tables, (lane + 1) * tables) for lane in range(lanes)]
    return make_group([fleet] * lanes, [[five_task(requests, rate, number) for number in own] for own in numbers])


def config_of(lanes: int, *, network: dict[str, Any] | None = None, **ppo: Any) -> TrainConfig:
    """A small network, small rollouts; the policy starts near indifferent."""
    sizes = {"hidden": (8,), "critic_hidden": (8,), "prior": "none"} | (network or {})
    return TrainConfig(
        fleets=(FleetsConfig(instances=2, lanes=lanes),), network=NetworkConfig(**sizes), ppo=PpoConfig(**ppo)
    )


def on_mesh(params: EnvParams, states: TrainState, mesh: jax.sharding.Mesh) -> tuple[EnvParams, TrainState]:
    """Both where `run_updates` leaves them, so that a second call needs no second compilation."""
    shardings = jax.tree.map(
        lambda spec: jax.sharding.NamedSharding(mesh, spec),
        state_specs(states),
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )
    return placed(params, lane_sharding(mesh)), placed(states, shardings)


def states_of(learner: Learner, params: EnvParams, *seeds: int) -> TrainState:
    """The first states of runs side by side, [K] leaves."""
    states = [initial_state(learner, (params,), jax.random.key(seed)) for seed in seeds]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


@partial(jax.jit, static_argnames=("env",))
def lanes_of(env: ClusterRouting, params: EnvParams) -> Lanes:
    """Lanes at the start of an episode."""
    count = params.penalty_weight.shape[0]
    keys = jax.random.split(jax.random.key(0), count)
    _, states = jax.vmap(env.reset_env)(keys, params)
    number = jnp.arange(count, dtype=jnp.int32)
    return Lanes(number=number, env=states, done=jnp.zeros(count, bool), return_scale=jnp.ones(count))


NETWORK = Scorer((8,))
SCALES = FeatureScales.identity(len(GLOBAL_FEATURES), len(INSTANCE_FEATURES))


def first_weights(seed: int, network: Scorer = NETWORK) -> Params:
    """Of a policy before training, without a prior: it is near indifferent."""
    observed = Observed(
        router=jnp.zeros(len(GLOBAL_FEATURES)),
        instances=jnp.zeros((2, len(INSTANCE_FEATURES))),
        mask=jnp.ones(3, bool),
    )
    return with_prior(network.init(jax.random.key(seed), observed, SCALES), NetworkConfig(prior="none"))


def played(
    env: ClusterRouting,
    params: EnvParams,
    lanes: Lanes,
    *,
    length: int,
    twin: Policy | None = LEAST_KV,
    seed: int = 0,
) -> tuple[Lanes, Experience]:
    """A rollout under `first_weights(seed)`, `LEAST_KV` the teacher."""
    key = jax.random.key(seed + 1)
    return _played(env, params, lanes, first_weights(seed), key, length=length, twin=twin)


@partial(jax.jit, static_argnames=("env", "length", "twin"))
def _played(
    env: ClusterRouting,
    params: EnvParams,
    lanes: Lanes,
    weights: Params,
    key: jax.Array,
    *,
    length: int,
    twin: Policy | None,
) -> tuple[Lanes, Experience]:
    return collect(env, params, NETWORK, weights, SCALES, lanes, key, length=length, teacher=LEAST_KV, twin=twin)
