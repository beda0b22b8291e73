"""What the critic knows of the present and the future."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TWO, V100, make_group

from jaxroute.simulate import Fleet
from jaxroute.train.critic import LOOK_AHEAD_S, Critic, Judged, judge, value_of, work_of
from jaxroute.workload.table import RequestTable

TABLE = RequestTable.create([0.5, 2.0, 3.0, 10.0, 50.0], [100] * 5, [10, 20, 30, 40, 50], name="five")
CAPACITY = 2 * V100.kv_tokens


def judged(fleet: Fleet, table: RequestTable = TABLE, *, size: int = 8, scale: float = 1.0) -> Judged:
    """At the start of the episode."""
    env, params = make_group([fleet], [[table]], size=size)
    own = jax.tree.map(lambda leaf: leaf[0], params)
    _, state = env.reset_env(jax.random.key(0), own)
    workload = jax.tree.map(lambda leaf: leaf[0], own.workloads)
    return judge(own.cluster, workload, work_of(workload), state.cluster, env.view(state, own), jnp.float32(scale))


def test_it_knows_the_tokens_that_are_about_to_arrive() -> None:
    coming = np.asarray(judged(TWO).whole[-len(LOOK_AHEAD_S) :]) * CAPACITY
    # Within 1, 4, 16 and 64 seconds.
    assert coming == pytest.approx([110, 360, 500, 650], rel=1e-5)


def test_the_unit_of_the_value_enters_by_its_logarithm() -> None:
    one, ten = judged(TWO).whole, judged(TWO, scale=10.0).whole
    changed = np.flatnonzero(one != ten)
    assert len(changed) == 1
    assert float(ten[changed[0]] - one[changed[0]]) == pytest.approx(np.log(10), rel=1e-5)


def test_a_server_whose_steps_have_no_constant_part_is_judged_by_finite_numbers() -> None:
    bare = dataclasses.replace(V100, coefficients_ms={**V100.coefficients_ms, "W": 0})
    seen = judged(Fleet((bare, V100), ("chunked",) * 2))
    assert np.isfinite(seen.instances).all()
    assert float(judged(TWO).instances[0, -1]) == pytest.approx(1 / (0.0189 * 50), rel=1e-5)
    critic = Critic((8,))
    assert np.isfinite(float(value_of(critic, critic.init(jax.random.key(0), seen), seen)))


def test_the_order_of_the_instances_does_not_matter_to_the_value() -> None:
    seen = judged(Fleet((V100, dataclasses.replace(V100, max_num_seqs=4)), ("chunked",) * 2))
    seen = seen._replace(instances=seen.instances + jnp.asarray([[0.0], [1.0]]))
    critic = Critic((8,))
    weights = critic.init(jax.random.key(0), seen)
    turned = seen._replace(instances=seen.instances[::-1])
    assert float(value_of(critic, weights, seen)) == pytest.approx(float(value_of(critic, weights, turned)), rel=1e-5)
