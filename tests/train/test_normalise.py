"""Running means and spreads of features are those of all values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.devices import lane_mesh
from jaxroute.observation import Observed
from jaxroute.train.normalise import LEAST_STD, Moments, RunningScales

G, F, INSTANCES = 2, 3, 4


def observed(lanes: int, steps: int, seed: int, instances: int = INSTANCES) -> Observed:
    """[E, T] observations far from zero, so that cancellation would show."""
    rng = np.random.default_rng(seed)
    return Observed(
        router=jnp.asarray(rng.normal(50, 2 + seed, (lanes, steps, G)), jnp.float32),
        instances=jnp.asarray(rng.normal(-20, 1 + seed, (lanes, steps, instances, F)), jnp.float32),
        mask=jnp.ones((lanes, steps, instances + 1), bool),
    )


def test_before_the_first_rollout_nothing_is_changed() -> None:
    scales = RunningScales.nothing(G, F).fixed()
    assert scales.global_mean.tolist() == [0.0] * G
    assert scales.global_std.tolist() == [1.0] * G
    assert scales.instance_std.tolist() == [1.0] * F


def test_merged_moments_are_those_of_all_values() -> None:
    scales = RunningScales.nothing(G, F)
    rollouts = [observed(3, 50, seed) for seed in range(4)]
    for each in rollouts:
        scales = scales.updated([each], [jnp.ones((3, 50))], None)
    router = np.concatenate([np.asarray(each.router, np.float64).reshape(-1, G) for each in rollouts])
    rows = np.concatenate([np.asarray(each.instances, np.float64).reshape(-1, F) for each in rollouts])
    assert (float(scales.router.count), float(scales.instances.count)) == (len(router), len(rows)) == (600, 2400)
    fixed = scales.fixed()
    np.testing.assert_allclose(fixed.global_mean, router.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fixed.global_std, router.std(0), rtol=1e-4)
    np.testing.assert_allclose(fixed.instance_mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(fixed.instance_std, rows.std(0), rtol=1e-4)


def test_values_without_weight_are_ignored() -> None:
    each = observed(3, 50, 1)
    weight = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 50)), jnp.float32)
    spoiled = each._replace(
        router=jnp.where(weight[..., None] > 0, each.router, 1e6),
        instances=jnp.where(weight[..., None, None] > 0, each.instances, -1e6),
    )
    found = RunningScales.nothing(G, F).updated([spoiled], [weight], None)
    kept = np.asarray(weight, bool)
    assert float(found.router.count) == kept.sum()
    np.testing.assert_allclose(found.router.mean, np.asarray(each.router)[kept].mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.router.std, np.asarray(each.router)[kept].std(0), rtol=1e-4)
    rows = np.asarray(each.instances)[kept].reshape(-1, F)
    np.testing.assert_allclose(found.instances.std, rows.std(0), rtol=1e-4)
    after = found.updated([spoiled], [jnp.zeros((3, 50))], None)
    np.testing.assert_array_equal(after.router.mean, found.router.mean)
    assert np.isfinite(after.router.square).all()


def test_groups_of_other_fleet_sizes_count_together() -> None:
    two, four = observed(2, 10, 0, instances=2), observed(5, 10, 1, instances=4)
    found = RunningScales.nothing(G, F).updated([two, four], [jnp.ones((2, 10)), jnp.ones((5, 10))], None)
    rows = np.concatenate([np.asarray(each.instances).reshape(-1, F) for each in (two, four)])
    assert float(found.instances.count) == len(rows) == 2 * 10 * 2 + 5 * 10 * 4
    np.testing.assert_allclose(found.instances.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.instances.std, rows.std(0), rtol=1e-4)


def test_moments_over_devices_are_those_of_all_lanes() -> None:
    each, weight = observed(4, 20, 2), jnp.asarray(np.random.default_rng(3).integers(0, 2, (4, 20)), jnp.float32)
    lanes, whole = jax.sharding.PartitionSpec("lanes"), jax.sharding.PartitionSpec()

    def update(seen: Observed, weights: jax.Array, axis: str | None) -> RunningScales:
        return RunningScales.nothing(G, F).updated([seen], [weights], axis)

    program = jax.shard_map(
        lambda seen, weights: update(seen, weights, "lanes"),
        mesh=lane_mesh(2),
        in_specs=(lanes, lanes),
        out_specs=whole,
        check_vma=False,
    )
    spread, alone = program(each, weight), update(each, weight, None)
    for one, other in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_feature_that_never_changes_is_not_blown_up() -> None:
    constant = Moments(count=jnp.float32(10), mean=jnp.full(F, 3.0), square=jnp.zeros(F))
    assert constant.std.tolist() == pytest.approx([LEAST_STD] * F)
