"""Observations as a run of the environment gives them, for the tests of what runs policies."""

from __future__ import annotations

import functools

import jax
import numpy as np

import jaxroute
from jaxroute.observation import Observed, unflatten
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from jaxroute.workload import five_task

INSTANCES = 3


@functools.cache
def recorded_observations(encoding: str, steps: int = 400) -> Observed:
    """[steps] observations of a busy fleet under a random policy, one behind the other."""
    servers = (load_profile("v100-32gb-llama2-7b").with_kv_tokens(2000),) * INSTANCES
    fleet = Fleet(servers, ("chunked",) * INSTANCES, queue_capacity=40)
    table = five_task(300, rate=40.0, seed=1)
    env, params = jaxroute.make(
        "ClusterRouting-v0", fleet=fleet, tables=[table], observation=encoding, scrape_s=(0.1, 0.1)
    )

    def step(carry, key: jax.Array):
        observation, state = carry
        action = jax.random.randint(jax.random.fold_in(key, 0), (), 0, INSTANCES + 1)
        following, state, *_ = env.step(jax.random.fold_in(key, 1), state, action, params)
        return (following, state), observation

    start = env.reset(jax.random.key(0), params)
    _, seen = jax.jit(lambda carry: jax.lax.scan(step, carry, jax.random.split(jax.random.key(1), steps)))(start)
    return Observed(*map(np.asarray, unflatten(seen, encoding, INSTANCES)))
