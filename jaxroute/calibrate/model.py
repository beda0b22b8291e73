"""The servers of a log as a function of their coefficients: times of every request, and how they depend on each.

Each server is simulated alone under the dispatches that the log says it had: no router, nothing to guess.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.calibrate.log import RequestLog
from jaxroute.cluster import clock
from jaxroute.cluster.clock import make_interval
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.params import check_requests_fit, make_config, make_params
from jaxroute.cluster.replay import replay_engine
from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS, StepProfile
from jaxroute.types import InstanceParams, Interval, StepCoefficients, Time, Workload
from jaxroute.workload.device import arrival_steps, stack

DT = 0.02
"""Unit of the clock, seconds; it rounds nothing."""

STEPS_PER_TOKEN = 4
"""Engine steps after which a replay is cut off, for each token: each step computes one at least, but preemptions drop
some."""


@dataclasses.dataclass(frozen=True)
class Simulated:
    """What the servers of a log would have done, for A sets of coefficients.

    Attributes:
      ttft_s, e2e_s: [A, N] seconds from the request's arrival, without the front end.
      ttft_slope, e2e_slope: [A, N, 9] anchored derivatives in the logarithm of each coefficient, seconds.
      drift_slope: [A, N, 9] what the pathwise derivatives have on top (see `jaxroute.cluster.replay`).
      preemptions: [A].
    """

    ttft_s: np.ndarray
    e2e_s: np.ndarray
    ttft_slope: np.ndarray
    e2e_slope: np.ndarray
    drift_slope: np.ndarray
    preemptions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class ServerModel:
    """The servers of a log.

    Attributes:
      log: what they were sent.
      config: static sizes.
      params: [I] leaves, the servers; their coefficients are not read.
      workloads: [I] leaves, its requests padded to the longest.
      rows: [I, n] rows of the log that those are, N where there is none.
    """

    log: RequestLog
    config: ClusterConfig
    params: InstanceParams
    workloads: Workload
    rows: np.ndarray

    @classmethod
    def create(cls, log: RequestLog, profiles: Sequence[StepProfile], schedulers: Sequence[str]) -> ServerModel:
        """The model; one profile and one scheduler for each server of the log.

        Raises:
          InputError: an unknown scheduler, or a request that cannot run on its server.
        """
        params = make_params(profiles, schedulers).instances
        own = [np.flatnonzero(log.server == server) for server in range(len(log.servers))]
        for mine, profile, scheduler in zip(own, profiles, schedulers, strict=True):
            check_requests_fit(log.prompt_tokens[mine], log.output_tokens[mine], profile, scheduler, log.name)
        most = max(map(len, own))
        rows = np.stack([np.pad(mine, (0, most - len(mine)), constant_values=len(log)) for mine in own])
        # Any dt that a profile can honour will do: the replay has no intervals.
        config = make_config(profiles, queue_capacity=most, dt=1e-4, records=True)
        workloads = stack([_workload(log, mine, most) for mine in own])
        return cls(log, config, params, workloads, rows)

    def __call__(self, coefficients_s: np.ndarray) -> Simulated:
        """Runs the servers with [A, 9] coefficients (or [A, I, 9], of each server), seconds.

        Raises:
          InputError: a run that does not come to an end.
        """
        coefficients_s = np.asarray(coefficients_s)
        if coefficients_s.ndim == 2:
            coefficients_s = np.repeat(coefficients_s[:, None], len(self.log.servers), axis=1)
        tokens = int((self.log.prompt_tokens + self.log.output_tokens).sum())
        found = jax.device_get(
            _run(
                self.config,
                self.params,
                self.workloads,
                make_interval(DT),
                jnp.asarray(coefficients_s, jnp.float32),
                most_steps=2 ** int(np.ceil(np.log2(STEPS_PER_TOKEN * tokens))),
            )
        )
        (ttft_slope, e2e_slope, drift_slope), (ttft, e2e, preemptions, complete) = found
        if not complete.all():
            raise InputError(
                f"{self.log.name}: a server does not get to the end of its requests in the simulation; check KV size, "
                "max_num_seqs, token budget and scheduler"
            )
        waited = self.log.waited_s
        return Simulated(
            ttft_s=self._by_request(ttft) + waited,
            e2e_s=self._by_request(e2e) + waited,
            ttft_slope=self._by_request(ttft_slope),
            e2e_slope=self._by_request(e2e_slope),
            drift_slope=self._by_request(drift_slope),
            preemptions=preemptions.sum(-1),
        )

    def _by_request(self, values: np.ndarray) -> np.ndarray:
        """[A, I, n, ...] by server and place -> [A, N, ...] float64 by row of the log."""
        found = np.zeros((values.shape[0], len(self.log) + 1, *values.shape[3:]))
        found[:, self.rows] = values
        return found[:, :-1]


@partial(jax.jit, static_argnames=("config", "most_steps"))
def _run(
    config: ClusterConfig,
    params: InstanceParams,
    workloads: Workload,
    dt: Interval,
    coefficients_s: jax.Array,
    *,
    most_steps: int,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Slopes of TTFT, E2E and drift, [A, I, n, 9]; TTFT and E2E, [A, I, n]; preemptions and completeness, [A, I]."""

    def times(logs: jax.Array, base: jax.Array, params: InstanceParams, workload: Workload) -> tuple[Any, Any]:
        values = base * jnp.exp(logs)
        step = StepCoefficients(**{name: values[place] for place, name in enumerate(COEFFICIENTS)})
        own = params.replace(step=step, step_rest=jax.tree.map(jnp.zeros_like, step))
        run = replay_engine(config, own, workload, dt, most_steps=most_steps)
        ttft, e2e = (clock.seconds_between(workload.arrival, end, dt) for end in (run.first, run.last))
        return (ttft - run.drift, e2e - run.drift, run.drift), (ttft, e2e, run.preemptions, run.complete)

    slopes = jax.jacfwd(times, has_aux=True)
    servers = jax.vmap(partial(slopes, jnp.zeros(len(COEFFICIENTS), jnp.float32)))
    return jax.vmap(servers, in_axes=(0, None, None))(coefficients_s, params, workloads)


def _workload(log: RequestLog, rows: np.ndarray, size: int) -> Workload:
    def column(values: np.ndarray, fill: int) -> jax.Array:
        padded = np.full(size, fill, np.int32)
        padded[: len(rows)] = values
        return jnp.asarray(padded)

    step, within, _ = arrival_steps(log.dispatch_s[rows], DT)
    offset = np.zeros(size, np.float32)
    offset[: len(rows)] = within
    nothing = jnp.zeros(size, jnp.int32)
    zeros = jnp.zeros(size, jnp.float32)
    return Workload(
        arrival=Time(step=column(step, 2**30), offset=jnp.asarray(offset)),
        visible_step=nothing,
        prompt_tokens=column(log.prompt_tokens[rows], 1),
        output_tokens=column(log.output_tokens[rows], 1),
        predicted_bucket=nothing,
        predicted_tokens=nothing,
        predicted_upper=nothing,
        task=nothing,
        lead_s=jnp.zeros(size + 1, jnp.float32),
        ideal_s=zeros,
        priority=nothing,
        num_requests=jnp.int32(len(rows)),
    )
