"""With `fixed_steps` the fleet is differentiable, and nothing else changes."""

from __future__ import annotations

import dataclasses

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cluster import fleet
from jaxroute.cluster.params import make_params
from jaxroute.cluster.state import ClusterState
from jaxroute.types import ClusterParams


def run(case: cases.Case, params: ClusterParams, intervals: int, *, fixed_steps: bool) -> ClusterState:
    config = dataclasses.replace(case.config, records=False, fixed_steps=fixed_steps, max_steps_per_interval=6)
    workload = case.workload

    def body(state: ClusterState, _: None) -> tuple[ClusterState, None]:
        return fleet.step(config, params, workload, state, state.dispatched % cases.INSTANCES)[0], None

    return jax.lax.scan(body, fleet.initial_state(config, params, workload), None, length=intervals)[0]


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_a_fixed_number_of_steps_gives_the_same_state(seed: int) -> None:
    case = cases.random_case(seed)
    params = make_params(case.profiles, case.schedulers)
    states = [jax.jit(lambda p, f=f: run(case, p, 150, fixed_steps=f))(params) for f in (True, False)]
    chex.assert_trees_all_equal(*states)


@pytest.mark.parametrize("seed", [1, 2, 9])
def test_gradients_of_the_step_ends_equal_finite_differences(seed: int) -> None:
    """With the order of events fixed, the end of the step in progress is smooth in every coefficient."""
    case = cases.random_case(seed)
    params = make_params(case.profiles, case.schedulers)

    @jax.jit
    def busy_time(params: ClusterParams) -> tuple[jax.Array, jax.Array]:
        state = run(case, params, 60, fixed_steps=True)
        end = state.engines.step.end
        events = state.engines.decode_count.sum() * 1000 + state.engines.admissions.sum()
        return jnp.sum(end.offset + end.step.astype(jnp.float32) * params.dt.seconds), events

    gradient = jax.jit(jax.grad(busy_time, has_aux=True, allow_int=True))(params)[0].instances.step
    checked = 0
    for name in ("W", "h", "g", "d", "e", "v", "u"):
        own = np.asarray(getattr(gradient, name))
        assert np.isfinite(own).all()
        for instance in range(cases.INSTANCES):
            value = getattr(params.instances.step, name)
            delta = 5e-4 * float(value[instance])
            if delta == 0:
                continue
            changed = [_with(params, name, value.at[instance].add(sign * delta)) for sign in (1, -1)]
            ends, orders = zip(*(busy_time(each) for each in changed), strict=True)
            # Float32 differences resolve changes well above its rounding only, and only where no event moved.
            change = float(ends[0] - ends[1])
            if int(orders[0]) != int(orders[1]) or abs(change) < 2e-4:
                continue
            assert own[instance] == pytest.approx(change / (2 * delta), rel=1e-2)
            checked += 1
    assert checked >= 2


def _with(params: ClusterParams, name: str, value: jax.Array) -> ClusterParams:
    step = params.instances.step.replace(**{name: value})
    return params.replace(instances=params.instances.replace(step=step))
