"""Evolution strategies: ranks by hand, costs that fall, and the same over any number of devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import uneven
from jax.flatten_util import ravel_pytree
from tiny import ROUND_ROBIN, SCALES, first_weights, make_group

from jaxroute.devices import lane_mesh, lane_sharding
from jaxroute.env_types import EnvParams
from jaxroute.policies.network import Scorer
from jaxroute.simulate import simulate
from jaxroute.train.config import EvolutionConfig
from jaxroute.train.episode import Outcome
from jaxroute.train.evolution import (
    UNFINISHED,
    EvolutionState,
    Evolver,
    Progress,
    centred_ranks,
    cost,
    initial_evolution,
    make_evolver,
    references,
    run_generations,
)
from jaxroute.workload.prediction import predict

NETWORK = Scorer((8,), holds=False)
TABLES = [[uneven.table(2 * lane), uneven.table(2 * lane + 1)] for lane in range(2)]
CALL = 4
"""Generations of one call."""


def test_ranks_are_even_from_minus_to_plus_a_half_and_equal_costs_share_theirs() -> None:
    assert centred_ranks(jnp.asarray([30.0, 10.0, 20.0])).tolist() == pytest.approx([0.5, -0.5, 0.0])
    assert centred_ranks(jnp.asarray([3.0, 1.0, 2.0, 2.0])).tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    assert centred_ranks(jnp.asarray([7.0, 7.0, 1.0])).tolist() == pytest.approx([0.25, 0.25, -0.5])
    assert centred_ranks(jnp.full(5, 2.0)).tolist() == [0.0] * 5
    # Column by column: a lane with large costs counts as much as one with small ones.
    lanes = jnp.asarray([[1.0, 900.0], [2.0, 100.0], [3.0, 500.0]])
    np.testing.assert_allclose(centred_ranks(lanes), [[-0.5, 0.5], [0.0, -0.5], [0.5, 0.0]], atol=1e-6)


def test_the_cost_is_relative_and_weighs_lateness_and_unfinished_runs_cost_most() -> None:
    def outcome(mean: list[float], late: list[float], complete: list[float]) -> Outcome:
        nothing = jnp.zeros(len(mean))
        return Outcome(jnp.asarray(mean), jnp.asarray(late), nothing, jnp.asarray(complete), nothing, nothing)

    reference = outcome([2.0, 4.0, 4.0], [0.0] * 3, [1.0] * 3)
    own = outcome([2.0, 3.0, 1.0], [0.0, 0.1, 0.0], [1.0, 1.0, 0.0])
    assert cost(own, reference, 10.0).tolist() == pytest.approx([1.0, (3 + 10 * 0.1) / 4, UNFINISHED])


@pytest.fixture(scope="module")
def made() -> tuple[Evolver, EnvParams, Outcome]:
    env, params = make_group([uneven.FLEET] * 2, TABLES)
    config = EvolutionConfig(generations=40, pairs=8, sigma=0.15, learning_rate=0.1)
    return make_evolver(config, (env,), NETWORK), params, references(env, params, mesh=lane_mesh(1))


def generations(
    made: tuple[Evolver, EnvParams, Outcome], devices: int, calls: int = 1
) -> tuple[EvolutionState, Progress]:
    """The run after some calls from one start, and the progress of all of its generations."""
    evolver, params, reference = made
    mesh = lane_mesh(devices)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = initial_evolution(evolver, first_weights(0, NETWORK), SCALES, jax.random.key(5))
    state, params, reference = jax.device_put((state, params, reference), everywhere)
    told = []
    for _ in range(calls):
        state, progress = run_generations(evolver, (params,), (reference,), state, mesh=mesh, count=CALL)
        told.append(jax.tree.map(np.asarray, progress))
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *told)


def test_references_are_round_robin_on_every_table(made: tuple[Evolver, EnvParams, Outcome]) -> None:
    _, params, reference = made
    assert reference.e2e_mean.shape == (2, 2)
    assert (np.asarray(reference.complete) == 1).all()
    for lane, table in ((0, 0), (1, 1)):
        requests = TABLES[lane][table]
        [result] = simulate(uneven.FLEET, requests, predict(requests, "0.8", seed=0), [ROUND_ROBIN])
        mean = (result.records.finish_s - requests.arrival_s).mean()
        assert float(reference.e2e_mean[lane, table]) == pytest.approx(mean, abs=0.03)
    both = references(made[0].envs[0], jax.device_put(params, lane_sharding(lane_mesh(2))), mesh=lane_mesh(2))
    for one, other in zip(both, reference, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_generations_come_to_spare_the_slow_server(made: tuple[Evolver, EnvParams, Outcome]) -> None:
    state, progress = generations(made, 1, calls=3)
    assert int(state.generation) == 3 * CALL
    first, last = progress.cost[:2].mean(), progress.cost[-4:].mean()
    # Taking the likeliest of near equal actions is far worse than turns.
    assert first > 2
    assert last < 0.5
    assert (progress.best <= progress.cost).all()
    assert (progress.incomplete == 0).all()
    assert (progress.step > 0).all()


def test_members_over_two_devices_are_those_of_one(made: tuple[Evolver, EnvParams, Outcome]) -> None:
    one, two = (generations(made, devices) for devices in (1, 2))
    begin, _ = ravel_pytree(first_weights(0, NETWORK))
    flat = [np.asarray(ravel_pytree(state.policy)[0]) for state, _ in (one, two)]
    assert np.abs(flat[0] - begin).max() > 0.1
    np.testing.assert_allclose(*flat, atol=1e-4)
    for field, own, other in zip(Progress._fields, one[1], two[1], strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5, err_msg=field)
