"""`jaxroute.make`: an environment and its parameters from a fleet and requests."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import gymnax
import jax.numpy as jnp

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams
from jaxroute.errors import InputError
from jaxroute.profiles import load_profile
from jaxroute.reward import Reward
from jaxroute.simulate import Fleet
from jaxroute.workload.device import stack, to_device
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import DEFAULT_EDGES, Prediction, predict
from jaxroute.workload.table import RequestTable

ENV_ID = "ClusterRouting-v0"
MARGIN_S = 120.0
"""Seconds that an episode lasts beyond three times the span of its arrivals, unless it is given."""


def make(
    env_id: str = ENV_ID,
    *,
    fleet: Fleet,
    tables: Sequence[RequestTable],
    prediction: str = "oracle",
    reward: Reward = "latency",
    observation: Literal["rich", "paper"] = "rich",
    max_steps: int | None = None,
    scrape_s: tuple[float, float] | None = None,
    penalty_weight: float = 0.0,
    seed: int = 0,
) -> tuple[ClusterRouting, EnvParams]:
    """The environment and its parameters.

    Args:
      env_id: `ClusterRouting-v0`.
      fleet: the servers, the router interval and the orders of the queues.
      tables: M workloads; every reset picks one.
      prediction: error model of the output lengths (see `workload.prediction.predict`).
      reward: `latency`, `paper` or `mixing`.
      observation: `rich` or `paper`.
      max_steps: router intervals after which an episode is truncated.
      scrape_s: least and most seconds between two scrapes, drawn at every reset; by default the fleet's.
      penalty_weight: w_k of the mixing penalty.
      seed: of the prediction errors.

    Raises:
      InputError: an unknown id, no workload, or a request that cannot run.
    """
    if env_id != ENV_ID:
        raise InputError(f"unknown environment {env_id!r}; known: {ENV_ID}")
    if not tables:
        raise InputError("an environment needs at least one workload")
    for table in tables:
        fleet.check(table)
    size = max(len(table) for table in tables)
    config = dataclasses.replace(fleet.config(size, records=False), buckets=len(DEFAULT_EDGES))
    params = env_params(
        fleet,
        tables,
        [predict(table, prediction, seed=seed + number) for number, table in enumerate(tables)],
        size=size,
        max_steps=max_steps,
        scrape_s=scrape_s,
        penalty_weight=penalty_weight,
    )
    return ClusterRouting(config, len(fleet.profiles), reward, observation), params


def env_params(
    fleet: Fleet,
    tables: Sequence[RequestTable],
    predictions: Sequence[Prediction],
    *,
    size: int,
    max_steps: int | None = None,
    scrape_s: tuple[float, float] | None = None,
    penalty_weight: float = 0.0,
) -> EnvParams:
    """The parameters of one environment, for a `ClusterConfig` that holds the fleet.

    Args:
      fleet: the servers, the router interval and the order of the router queue.
      tables: M workloads that have been checked against the fleet.
      predictions: what the router is told of each.
      size: N, to which shorter tables are padded.
      max_steps, scrape_s, penalty_weight: see `make`.
    """
    columns = [
        to_device(
            table,
            prediction,
            dt=fleet.dt,
            size=size,
            ageing=fleet.ageing,
            spf_edges=fleet.spf_edges,
            profile=fleet.profiles[0],
        )
        for table, prediction in zip(tables, predictions, strict=True)
    ]
    least, most = (fleet.scrape_s, fleet.scrape_s) if scrape_s is None else scrape_s
    if max_steps is None:
        longest = max(float(table.arrival_s[-1]) for table in tables)
        max_steps = round((3 * longest + MARGIN_S) / fleet.dt)
    return EnvParams(
        cluster=fleet.params(),
        workloads=stack(columns),
        max_steps_in_episode=jnp.int32(max_steps),
        scrape_periods=jnp.asarray([max(1, round(least / fleet.dt)), max(1, round(most / fleet.dt))], jnp.int32),
        penalty_weight=jnp.float32(penalty_weight),
    )


class DefaultClusterRouting(ClusterRouting):
    """The environment that `gymnax.make` gives, which brings its own parameters."""

    @property
    def default_params(self) -> EnvParams:
        """Those of `default_environment`."""
        return default_environment()[1]


@functools.cache
def default_environment() -> tuple[ClusterRouting, EnvParams]:
    """Four V100 with Llama-2-7B, chunked, and eight workloads of 500 five-task requests at 20/s."""
    fleet = Fleet((load_profile("v100-32gb-llama2-7b"),) * 4, ("chunked",) * 4)
    env, params = make(fleet=fleet, tables=[five_task(500, 20.0, seed) for seed in range(8)])
    return DefaultClusterRouting(env.config, env.instances, env.reward, env.observation), params


def register() -> None:
    """Makes `gymnax.make("ClusterRouting-v0")` return the default environment and its parameters."""
    gymnax.register(ENV_ID, lambda: default_environment()[0])
