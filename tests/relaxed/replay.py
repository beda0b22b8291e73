"""Random cases of the exact simulator, played by the relaxed one."""

from __future__ import annotations

from functools import partial

import cases
import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.cluster.params import make_params
from jaxroute.relaxed import fleet
from jaxroute.relaxed.state import RelaxedState, all_finished, initial_state
from jaxroute.relaxed.work import MOVES, Derivative
from jaxroute.types import ClusterParams, Workload

ROWS = cases.REQUESTS


def one_hot_weights(case: cases.Case) -> np.ndarray:
    """[N, I] float32, the decisions of a case."""
    weights = np.zeros((ROWS, cases.INSTANCES), np.float32)
    weights[np.arange(len(case.instance)), case.instance] = 1
    return weights


def params_of(case: cases.Case) -> ClusterParams:
    return make_params(case.profiles, case.schedulers, dt=case.dt)


def padded(case: cases.Case) -> np.ndarray:
    """[N] int32, the interval before which each request stays at the router."""
    return np.pad(case.not_before, (0, ROWS - len(case.not_before))).astype(np.int32)


@partial(jax.jit, static_argnames=("length", "derivative"))
def played(
    params: ClusterParams,
    workload: Workload,
    weights: jax.Array,
    not_before: jax.Array,
    state: RelaxedState,
    *,
    length: int,
    derivative: Derivative = MOVES,
) -> tuple[RelaxedState, jax.Array]:
    """The state after `length` intervals more, and the seconds in the system of each."""

    @jax.checkpoint
    def body(state: RelaxedState, _: None) -> tuple[RelaxedState, jax.Array]:
        head = jnp.minimum(state.dispatched, ROWS - 1)
        own = jnp.where(state.now >= not_before[head], weights[head], 0)
        return fleet.step(params, workload, state, own, steps=cases.STEPS, derivative=derivative)

    return jax.lax.scan(body, state, None, length=length)


def play(case: cases.Case, weights: np.ndarray) -> tuple[RelaxedState, float]:
    """A case to its end; also the seconds that its requests spent in the system."""
    params, workload = params_of(case), case.workload
    state, total = initial_state(params, workload, ROWS, records=True), 0.0
    for _ in range(60):
        state, spent = played(params, workload, jnp.asarray(weights), jnp.asarray(padded(case)), state, length=512)
        total += float(np.asarray(spent, np.float64).sum())
        if bool(all_finished(workload, state)):
            return jax.device_get(state), total
    raise AssertionError("the run does not end")
