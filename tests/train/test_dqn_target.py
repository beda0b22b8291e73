"""Q-learning targets against cases that were worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.train.dqn_target import Return, chosen, double_target, huber, returns

LEAST = np.finfo(np.float32).min
HALF = jnp.float32(0.5)


def three(*, ended: int | None = None, terminated: bool = True, alive: bool = True, discount: float = 0.5) -> Return:
    """The return of rewards 1, 2 and 4, of which one may be the episode's last."""
    ends = jnp.arange(3) == (-1 if ended is None else ended)
    lives = jnp.asarray([alive, alive, alive]) & (jnp.arange(3) <= (2 if ended is None else ended))
    return returns(jnp.asarray([1.0, 2.0, 4.0]), ends & terminated, ends, lives, jnp.float32(discount))


def test_the_network_chooses_and_the_target_network_judges() -> None:
    back = Return(jnp.float32(2), jnp.float32(0.9), jnp.float32(1))
    target = double_target(back, jnp.asarray([1.0, 5.0, 2.0]), jnp.asarray([10.0, 3.0, 20.0]))
    # The network's best is the second action, which the target network gives 3; its own best, 20, does not count.
    assert float(target) == pytest.approx(2 + 0.9 * 3)


def test_an_action_that_is_not_allowed_is_never_the_next_one() -> None:
    back = Return(jnp.zeros(2), jnp.ones(2), jnp.ones(2))
    online = jnp.asarray([[LEAST, -7.0, -8.0], [LEAST, LEAST, -9.0]])
    target = jnp.asarray([[LEAST, 3.0, 4.0], [LEAST, LEAST, 5.0]])
    assert double_target(back, online, target).tolist() == [3.0, 5.0]


def test_nothing_is_behind_an_end_not_even_what_is_no_number() -> None:
    back = three(ended=2)
    target = double_target(back, jnp.asarray([1.0, 2.0]), jnp.asarray([jnp.nan, jnp.inf]))
    assert float(target) == pytest.approx(1 + 0.5 * 2 + 0.25 * 4)


def test_rewards_in_a_row_are_discounted_and_the_value_behind_them_as_well() -> None:
    back = three()
    assert [float(value) for value in back] == pytest.approx([1 + 0.5 * 2 + 0.25 * 4, 0.125, 1])
    one = returns(jnp.ones(1), jnp.zeros(1, bool), jnp.zeros(1, bool), jnp.ones(1, bool), HALF)
    assert [float(value) for value in one] == [1, 0.5, 1]


@pytest.mark.parametrize(("ended", "reward"), [(0, 1), (1, 2), (2, 3)])
def test_rewards_count_up_to_the_end_of_the_episode(ended: int, reward: float) -> None:
    assert [float(value) for value in three(ended=ended)] == pytest.approx([reward, 0, 1])


def test_nothing_is_learned_from_what_is_cut_off_and_from_what_follows_an_end() -> None:
    for ended in range(3):
        assert float(three(ended=ended, terminated=False).weight) == 0
    assert float(three(alive=False).weight) == 0
    assert float(three(alive=False, ended=0).weight) == 0


def test_an_end_is_that_of_the_first_episode() -> None:
    """Of two ends in a row of rewards the second is another episode's, and may be one that was cut off."""
    ended = jnp.asarray([False, True, True])
    terminated = jnp.asarray([False, True, False])
    back = returns(jnp.asarray([1.0, 2.0, 4.0]), terminated, ended, jnp.ones(3, bool), HALF)
    assert [float(value) for value in back] == [2, 0, 1]


def test_without_a_discount_only_the_next_reward_counts() -> None:
    assert [float(value) for value in three(discount=0)] == [1, 0, 1]


def test_leading_axes_stay() -> None:
    shape = (2, 5, 3)
    flags = jnp.zeros(shape, bool)
    back = returns(jnp.ones(shape), flags, flags, ~flags, HALF)
    assert back.reward.shape == back.factor.shape == (2, 5)
    np.testing.assert_allclose(back.reward, 1.75)
    np.testing.assert_allclose(back.factor, 0.125)
    values = jax.random.normal(jax.random.key(0), (2, 5, 4))
    action = jnp.asarray([[0, 1, 2, 3, 0], [3, 2, 1, 0, 3]], jnp.int32)
    assert chosen(values, action).tolist() == [[float(values[i, j, action[i, j]]) for j in range(5)] for i in range(2)]


def test_the_loss_is_a_square_near_zero_and_linear_far_off() -> None:
    assert huber(jnp.asarray([0.0, 0.5, -1.0, 3.0, -3.0])).tolist() == [0, 0.125, 0.5, 2.5, 2.5]
