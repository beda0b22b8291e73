"""PPO's losses, by hand-computed numbers."""

from __future__ import annotations

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.observation import Observed
from jaxroute.train.critic import Judged
from jaxroute.train.loss import Batch, PolicyLoss, critic_loss, policy_loss

CLIP = 0.2
MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)
"""What the network gives to a masked action."""


def batch_of(
    *,
    action: list[int],
    before: list[float],
    advantage: list[float] | None = None,
    teacher: list[int] | None = None,
    decides: list[float] | None = None,
    target: list[float] | None = None,
    alive: list[float] | None = None,
) -> Batch:
    """Steps whose actions had these probabilities when they were taken."""
    steps = len(action)

    def floats(values: list[float] | None, default: float) -> jax.Array:
        return jnp.asarray([default] * steps if values is None else values, jnp.float32)

    nothing = jnp.zeros((steps, 1))
    return Batch(
        observed=Observed(nothing, nothing[..., None], jnp.ones((steps, 3), bool)),
        judged=Judged(nothing, nothing[..., None]),
        action=jnp.asarray(action, jnp.int32),
        log_prob=jnp.log(jnp.asarray(before, jnp.float32)),
        teacher=jnp.asarray(action if teacher is None else teacher, jnp.int32),
        advantage=floats(advantage, 1.0),
        target=floats(target, 0.0),
        error=floats(None, 0.0),
        alive=floats(alive, 1.0),
        decides=floats(decides, 1.0),
    )


def logits_of(*probabilities: list[float]) -> jax.Array:
    """[steps, A] logits, up to a constant those of the probabilities."""
    return jnp.asarray([[math.log(p) + 3 if p else MASKED_LOGIT for p in row] for row in probabilities], jnp.float32)


def losses(logits: jax.Array, batch: Batch) -> PolicyLoss:
    return policy_loss(distrax.Categorical(logits=logits), batch, CLIP)


def gradient(logits: jax.Array, batch: Batch, part: str) -> np.ndarray:
    return np.asarray(jax.grad(lambda given: getattr(losses(given, batch), part))(logits))


@pytest.mark.parametrize(
    ("before", "advantage", "surrogate", "moves"),
    [
        # The ratio is 0.5 over the probability before: 1.25 and 0.625, with bounds of 0.8 and 1.2.
        (0.4, 1.0, -1.2, False),
        (0.4, -1.0, 1.25, True),
        (0.8, 1.0, -0.625, True),
        (0.8, -2.0, 1.6, False),
        (0.5, 3.0, -3.0, True),
    ],
)
def test_a_ratio_is_clipped_where_the_step_would_go_on_in_its_direction(
    before: float, advantage: float, surrogate: float, moves: bool
) -> None:
    logits = logits_of([0.5, 0.25, 0.25])
    batch = batch_of(action=[0], before=[before], advantage=[advantage])
    found = losses(logits, batch)
    assert float(found.surrogate) == pytest.approx(surrogate, rel=1e-5)
    ratio = 0.5 / before
    assert float(found.clipped) == (abs(ratio - 1) > CLIP)
    assert float(found.kl) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-6)
    # d ratio / d logits = ratio * (one-hot of the action - probabilities).
    expected = -advantage * ratio * np.asarray([0.5, -0.25, -0.25]) if moves else np.zeros(3)
    np.testing.assert_allclose(gradient(logits, batch, "surrogate")[0], expected, rtol=1e-4, atol=1e-6)


def test_a_step_with_nothing_to_decide_has_no_share_and_no_gradient() -> None:
    logits = logits_of([0.5, 0.25, 0.25], [0.2, 0.3, 0.5])
    # Of the second step everything is odd: the action is far off its old probability, the advantage huge.
    batch = batch_of(action=[0, 1], before=[0.5, 0.001], advantage=[1.0, 1e6], teacher=[0, 2], decides=[1, 0])
    alone = losses(logits[:1], batch_of(action=[0], before=[0.5]))
    for part, one, other in zip(PolicyLoss._fields, losses(logits, batch), alone, strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6, abs=1e-7), part
        if part not in ("clipped", "steps"):
            assert (gradient(logits, batch, part)[1] == 0).all(), part
    assert float(losses(logits, batch).steps) == 1
    dead = batch_of(action=[0, 1], before=[0.5, 0.3], decides=[0, 0])
    assert all(float(part) == 0 for part in losses(logits, dead))


def test_a_masked_action_has_no_probability_no_entropy_and_no_gradient() -> None:
    logits = logits_of([0.5, 0.0, 0.5], [0.0, 0.0, 1.0])
    assert distrax.Categorical(logits=logits).probs[:, 1].tolist() == [0.0, 0.0]
    draws = distrax.Categorical(logits=logits).sample(seed=jax.random.key(0), sample_shape=(1000,))
    assert set(np.asarray(draws[:, 0])) == {0, 2}
    assert set(np.asarray(draws[:, 1])) == {2}
    batch = batch_of(action=[0, 2], before=[0.5, 1.0], teacher=[2, 2])
    assert float(losses(logits, batch).entropy) == pytest.approx(math.log(2), rel=1e-6)
    for part in ("surrogate", "entropy", "imitation", "kl"):
        found = gradient(logits, batch, part)
        assert np.isfinite(found).all(), part
        assert (found[:, 1] == 0).all(), part
    assert (gradient(logits, batch, "surrogate")[0] != 0).tolist() == [True, False, True]


def test_a_teachers_masked_action_teaches_nothing() -> None:
    logits = logits_of([0.5, 0.0, 0.5], [0.25, 0.5, 0.25])
    batch = batch_of(action=[0, 0], before=[0.5, 0.25], teacher=[1, 1])
    assert float(losses(logits, batch).imitation) == pytest.approx(-math.log(0.5), rel=1e-6)
    found = gradient(logits, batch, "imitation")
    assert (found[0] == 0).all()
    np.testing.assert_allclose(found[1], [0.25, -0.5, 0.25], rtol=1e-5)


def test_the_critic_learns_from_living_steps_only() -> None:
    batch = batch_of(action=[0, 0, 0], before=[1, 1, 1], target=[1.0, 2.0, 1e6], alive=[1, 1, 0])
    assert float(critic_loss(jnp.asarray([3.0, 1.0, 0.0]), batch)) == 0.5 * (4 + 1)
    assert jax.grad(critic_loss)(jnp.asarray([3.0, 1.0, 0.0]), batch).tolist() == [2.0, -1.0, 0.0]
