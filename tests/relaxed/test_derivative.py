"""The derivative of the total latency by the weights."""

from __future__ import annotations

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.profiles import load_profile
from jaxroute.relaxed.fleet import total_latency
from jaxroute.relaxed.state import initial_state
from jaxroute.relaxed.work import MOVES, PATHWISE, Derivative
from jaxroute.simulate import Fleet
from jaxroute.types import ClusterParams, Workload
from relaxed import moves
from relaxed.replay import ROWS, one_hot_weights, padded, params_of, played

LENGTH = 512


@jax.jit
def latencies(params: ClusterParams, workload: Workload, weights: jax.Array, not_before: jax.Array) -> jax.Array:
    """[M, I], of each copy."""
    state = initial_state(params, workload, ROWS, records=True)
    state, _ = played(params, workload, weights, not_before, state, length=LENGTH, derivative=PATHWISE)
    return total_latency(state, params.dt)[1].T


def slope(case: cases.Case, weights: np.ndarray, derivative: Derivative) -> np.ndarray:
    def total(weights: jax.Array) -> jax.Array:
        params, workload = params_of(case), case.workload
        state = initial_state(params, workload, ROWS, records=True)
        state, _ = played(
            params, workload, weights, jnp.asarray(padded(case)), state, length=LENGTH, derivative=derivative
        )
        return jnp.sum(total_latency(state, params.dt)[0])

    return np.asarray(jax.grad(total)(jnp.asarray(weights)))


def total(case: cases.Case, weights: np.ndarray) -> float:
    """Seconds, summed in float64."""
    each = latencies(params_of(case), case.workload, jnp.asarray(weights), jnp.asarray(padded(case)))
    return float((np.asarray(each, np.float64) * weights).sum())


@pytest.mark.parametrize("seed", [2000, 2002, 2003, 2005, 2010])
def test_between_the_corners_it_equals_finite_differences(seed: int) -> None:
    """Where no event changes its place: two finite differences, one of half the width, then agree."""
    case = cases.random_case(seed)
    rng = np.random.default_rng(seed)
    count = len(case.table)
    weights = np.zeros((ROWS, cases.INSTANCES), np.float32)
    weights[:count] = rng.dirichlet(np.full(cases.INSTANCES, 2.0), count)
    own = slope(case, weights, PATHWISE)
    assert np.isfinite(own).all()
    checked = 0
    for _ in range(12):
        request = rng.integers(count)
        to, away = rng.permutation(cases.INSTANCES)[:2]
        direction = np.zeros_like(weights)
        direction[request, to], direction[request, away] = 1, -1
        wide, narrow = (
            (total(case, weights + width * direction) - total(case, weights - width * direction)) / (2 * width)
            for width in (np.float32(2e-3), np.float32(1e-3))
        )
        if abs(wide - narrow) > 2e-3 + 0.01 * abs(wide):
            continue
        assert float((own * direction).sum()) == pytest.approx(wide, rel=0.02, abs=3e-3)
        checked += 1
    assert checked >= 6


@pytest.mark.parametrize("scheduler", cases.SCHEDULERS)
def test_at_the_corners_it_is_finite_whatever_happens(scheduler: str) -> None:
    for seed in (1001, 1004, 1007):
        case = cases.random_case(seed, scheduler=scheduler)
        assert np.isfinite(slope(case, one_hot_weights(case), MOVES)).all()


@pytest.mark.parametrize("scheduler", ["chunked", "prefill-first"])
def test_it_foretells_what_moving_a_request_changes(scheduler: str) -> None:
    """Starved of KV cache, where waits are most of a latency."""
    profile = load_profile("v100-32gb-llama2-7b").with_kv_tokens(2500)
    servers = Fleet((profile,) * 2, (scheduler,) * 2)
    found = moves.compare(
        servers,
        rate=4.0,
        requests=48,
        moved=24,
        seed=0,
        length=1400,
        derivatives={"moves": MOVES, "pathwise": PATHWISE},
    )
    true = found["true"]
    large = np.abs(true) >= np.median(np.abs(true))
    assert np.corrcoef(found["moves"], true)[0, 1] > 0.7
    assert (np.sign(found["moves"]) == np.sign(true))[large].mean() >= 0.75
    assert np.corrcoef(found["moves"], true)[0, 1] > np.corrcoef(found["pathwise"], true)[0, 1]
