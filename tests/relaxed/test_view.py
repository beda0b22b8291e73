"""What the router sees of the relaxed fleet."""

from __future__ import annotations

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cluster import fleet
from jaxroute.cluster.state import ClusterState
from jaxroute.cluster.view import router_view
from jaxroute.relaxed import fleet as relaxed_fleet
from jaxroute.relaxed.state import RelaxedState, compacted, initial_state
from jaxroute.relaxed.view import relaxed_view
from jaxroute.types import ClusterParams, RouterView, Workload
from relaxed.replay import ROWS, one_hot_weights, params_of

FIELDS = (
    "queue_length",
    "head_prompt_tokens",
    "head_predicted_tokens",
    "head_wait",
    "dispatched",
    "in_flight",
    "in_flight_tokens",
    "awaiting_first",
    "awaiting_prompt_tokens",
    "predicted_tokens_left",
    "scraped_running",
    "scraped_waiting",
    "scraped_kv_usage",
    "scraped_age",
)


def both(
    case: cases.Case, params: ClusterParams, workload: Workload, weights: jax.Array, every: int
) -> tuple[RouterView, RouterView]:
    """The views of the exact and of the relaxed fleet in 300 intervals; free rows are cleared every so often."""
    config = case.config

    def body(carry: tuple[ClusterState, RelaxedState], _: None) -> tuple[tuple[ClusterState, RelaxedState], object]:
        exact, relaxed = carry
        views = router_view(config, params, workload, exact), relaxed_view(params, workload, relaxed)
        own = weights[jnp.minimum(exact.dispatched, ROWS - 1)]
        exact, _ = fleet.step(config, params, workload, exact, jnp.argmax(own).astype(jnp.int32))
        relaxed, _ = relaxed_fleet.step(params, workload, relaxed, own, steps=cases.STEPS)
        clear = relaxed.now % every == 0
        relaxed = jax.tree.map(lambda one, other: jnp.where(clear, one, other), compacted(relaxed), relaxed)
        return (exact, relaxed), views

    start = fleet.initial_state(config, params, workload), initial_state(params, workload, ROWS)
    return jax.lax.scan(body, start, None, length=300)[1]


@pytest.mark.parametrize("seed", [3, 9, 14])
def test_with_whole_requests_it_is_the_exact_one(seed: int) -> None:
    case = cases.random_case(seed)
    run = jax.jit(lambda params, workload, weights: both(case, params, workload, weights, every=16))
    exact, relaxed = run(params_of(case), case.workload, jnp.asarray(one_hot_weights(case)))
    assert int(exact.in_flight.max()) > 1
    for name in FIELDS:
        own, other = np.asarray(getattr(relaxed, name), np.float64), np.asarray(getattr(exact, name), np.float64)
        np.testing.assert_allclose(own, other, atol=1e-5, err_msg=name)
