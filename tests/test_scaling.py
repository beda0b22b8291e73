"""Weak scaling: the sums of a program counted, all-reduces by hand, and a measurement of a tiny training."""

from __future__ import annotations

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.devices import AXIS, lane_mesh
from jaxroute.expectation import Links, expect
from jaxroute.scaling import Point, sums_of, with_efficiency
from jaxroute.train.load_config import load_config


def test_sums_in_loops_count_as_often_as_the_loops_go_round() -> None:
    def inner(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        pair = jax.lax.psum((carry, jnp.ones(2)), AXIS)
        return pair[0] / 2, None

    def outer(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        carry = jax.lax.scan(inner, carry, None, length=3)[0]
        return carry + jax.lax.psum(jnp.float32(1), AXIS), None

    def local(values: jax.Array) -> jax.Array:
        return jax.lax.scan(outer, values, None, length=5)[0]

    whole = jax.sharding.PartitionSpec()
    program = jax.jit(
        partial(jax.shard_map, mesh=lane_mesh(2), in_specs=whole, out_specs=whole, check_vma=False)(local)
    )
    # Both of a pair at once.
    assert sums_of(program.trace(jnp.ones(4)).jaxpr.jaxpr) == {24: 15, 4: 5}


def test_sums_that_wait_for_each_other_are_not_one() -> None:
    def local(values: jax.Array) -> jax.Array:
        total = jax.lax.psum(values, AXIS)
        return jax.lax.psum(values * total, AXIS) + jax.lax.psum(values[:1], AXIS)

    whole = jax.sharding.PartitionSpec()
    mesh = lane_mesh(2)
    program = jax.jit(partial(jax.shard_map, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)(local))
    assert sums_of(program.trace(jnp.ones(4)).jaxpr.jaxpr) == {20: 1, 16: 1}


def test_all_reduces_by_hand() -> None:
    links = Links(per_host=8, host_gb_s=100, host_us=5, network_gb_s=10, network_us=20)
    assert links.all_reduce_s(10**6, 1) == 0
    # Half of it there and back, one hop up and down.
    assert links.all_reduce_s(10**6, 2) == pytest.approx(1e6 / 100e9 + 10e-6)
    assert links.all_reduce_s(10**6, 8) == pytest.approx(2 * 7 / 8 * 1e6 / 100e9 + 2 * 3 * 5e-6)
    assert links.all_reduce_s(10**6, 64) == pytest.approx(2 * 63 / 64 * 1e6 / 10e9 + 2 * (3 * 5e-6 + 3 * 20e-6))
    # Two servers that are not full.
    assert links.all_reduce_s(0, 9) == pytest.approx(2 * (3 * 5e-6 + 20e-6))


def test_what_is_expected_adds_the_sums_to_the_update_of_one_device() -> None:
    links = Links()
    sums = {4: 10, 100_000: 16}
    one, many = (expect(sums, update_s=0.05, env_steps=4096, devices=count, links=links) for count in (1, 64))
    assert one.env_steps_per_s == pytest.approx(4096 / 0.05)
    assert one.efficiency == 1
    added = 10 * links.all_reduce_s(4, 64) + 16 * links.all_reduce_s(100_000, 64)
    assert many.all_reduce_s == pytest.approx(added)
    assert many.update_s == pytest.approx(0.05 + added)
    assert many.env_steps_per_s == pytest.approx(64 * many.efficiency * one.env_steps_per_s)


def test_devices_that_share_cores_are_held_against_the_cores() -> None:
    first = Point(1, 8, 1000.0, 1.0, 0.0, 1.0, 1.0)
    four = Point(4, 32, 1800.0, 1.0, 0.1, 1.0, 1.0)
    assert with_efficiency(four, first, 2).efficiency == pytest.approx(0.45)
    assert with_efficiency(four, first, 2).efficiency_of_cores == pytest.approx(0.9)
    assert with_efficiency(four, first, None).efficiency_of_cores == pytest.approx(0.45)


@pytest.mark.slow
def test_bench_measures_training_on_one_device_and_on_two(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--devices", "2,1", "--config", "smoke", "--envs", "2", "--repeats", "1", "--update-ms", "50"]
    main(["bench", *options, "--json"])
    report = json.loads(capsys.readouterr().out)
    config = load_config("smoke")
    assert [(point["devices"], point["envs"]) for point in report["points"]] == [(1, 2), (2, 4)]
    for point in report["points"]:
        assert point["env_steps_per_s"] == pytest.approx(point["envs"] * config.ppo.rollout / point["update_s"])
    one, two = report["points"]
    assert one["all_reduce_s"] == 0 < two["all_reduce_s"]
    assert two["efficiency"] == pytest.approx(two["env_steps_per_s"] / one["env_steps_per_s"] / 2)
    # The gradients of policy and critic, and a few figures, in every minibatch.
    sums = {int(size): count for size, count in report["sums"].items()}
    largest = max(sums)
    assert sums[largest] == config.ppo.epochs * config.ppo.minibatches
    assert 4 * 500 < largest < 4 * 10_000
    eight, many = report["expected"]
    assert (eight["devices"], many["devices"]) == (8, 64)
    assert eight["update_s"] == pytest.approx(0.05 + eight["all_reduce_s"])
    assert 0.5 < many["efficiency"] < eight["efficiency"] < 1
    assert np.isfinite([value for each in report["expected"] for value in each.values()]).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--devices", "1,x"], "must be numbers of devices"),
        (["--devices", "1", "--links.host-gb-s", "0"], "--links.host-gb-s is 0.0, must be above 0"),
        (["--devices", "1", "--envs", "0"], "--envs is 0, must be above 0"),
        (["--devices", "1", "--config", "nothing"], "no such shipped configuration"),
    ],
)
def test_bad_options_of_scaling_are_refused(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *options])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
