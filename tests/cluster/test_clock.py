from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxroute.cluster import clock
from jaxroute.cluster.kv import blocks_for, phase_of
from jaxroute.types import Time


@pytest.mark.parametrize("dt", [0.02, 0.001, 0.0137, 0.5])
def test_twenty_thousand_step_times_add_up_to_nanoseconds(dt: float) -> None:
    """No absolute time is ever formed: an hour of sums is as exact as one of them."""
    durations = np.random.default_rng(0).uniform(0.011, 0.3, 20_000)
    rounded = durations.astype(np.float32)
    rest = (durations - rounded).astype(np.float32)
    interval = clock.make_interval(dt)

    @jax.jit
    def run(durations: tuple[jax.Array, jax.Array]) -> tuple[Time, jax.Array]:
        def body(carry, duration):
            return clock.later(*carry, *duration, interval), carry[0].offset

        start = (clock.at_step(jnp.int32(0)), jnp.float32(0))
        (end, rest), offsets = jax.lax.scan(body, start, durations)
        return end, rest, offsets

    end, end_rest, offsets = run((rounded, rest))
    total = int(end.step) * dt + float(end.offset) + float(end_rest)
    assert total == pytest.approx(durations.sum(), abs=2e-8)
    assert durations.sum() > 3000
    assert ((offsets >= 0) & (offsets <= interval.seconds)).all()


def test_the_offset_carries_the_derivative_over_step_borders() -> None:
    interval = clock.make_interval(0.02)

    def end_offset(duration: jax.Array) -> jax.Array:
        start = Time(step=jnp.int32(3), offset=jnp.float32(0.015))
        return clock.later(start, jnp.float32(0), duration, jnp.float32(0), interval)[0].offset

    for duration in (0.001, 0.018, 0.3):
        assert float(jax.grad(end_offset)(jnp.float32(duration))) == pytest.approx(1.0)


@settings(deadline=None)
@given(tokens=st.integers(0, 2**20), block_size=st.integers(1, 300))
def test_blocks_and_phases_are_those_of_whole_number_arithmetic(tokens: int, block_size: int) -> None:
    assert int(blocks_for(jnp.int32(tokens), jnp.int32(block_size))) == -(-tokens // block_size)
    assert int(phase_of(jnp.int32(-tokens), jnp.int32(block_size))) == (-tokens) % block_size
