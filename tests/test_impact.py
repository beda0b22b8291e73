"""The paper's numbers as test cases (V100, Llama-2-7B: grad1 = 3.2e-4, grad2 = 3.3e-5)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.impact import guidance_weight, head_mixing_rewards, mixing_penalty, mixing_reward, prompt_impact
from views import view

GRAD1, GRAD2 = 3.2e-4, 3.3e-5


def reward(prompt: float, output: float, in_flight: float, **options: object) -> float:
    return float(
        mixing_reward(
            prompt_tokens=np.float32(prompt),
            output_tokens=np.float32(output),
            tokens_in_flight=np.float32(in_flight),
            grad1=GRAD1,
            grad2=GRAD2,
            xp=np,
            **options,
        )
    )


def test_prompt_impact_is_the_papers_slope_under_the_linear_reading() -> None:
    """Figure 4a: 2,500 prompt tokens take 0.8 s."""
    impact = prompt_impact(prompt_tokens=2500.0, tokens_in_flight=0.0, grad1=GRAD1, square=False)
    assert impact == pytest.approx(0.8)
    assert prompt_impact(prompt_tokens=30.0, tokens_in_flight=100.0, grad1=GRAD1) == pytest.approx(0.32)


def test_a_cheap_prompt_earns_the_whole_prompt_reward() -> None:
    # T_p = 3.2e-4 * (20^2 + 1000) = 0.448 s <= 0.5 s; r_d = -3.3e-5 * (1000 + 20 + 80) = -0.0363.
    assert reward(20, 80, 1000) == pytest.approx(0.5 * 1 - 0.5 * 0.0363, abs=1e-6)


def test_a_dear_prompt_loses_what_it_exceeds_the_bound_by() -> None:
    # T_p = 3.2e-4 * (100^2 + 1000) = 3.52 s: r_p = 1 - 3.52 / 0.5 = -6.04.
    assert reward(100, 80, 1000) == pytest.approx(0.5 * -6.04 - 0.5 * GRAD2 * 1180, abs=1e-5)
    # The other reading: T_p = 3.2e-4 * 1100 = 0.352 s.
    assert reward(100, 80, 1000, square=False) == pytest.approx(0.5 - 0.5 * GRAD2 * 1180, abs=1e-6)


def test_the_decode_reward_reaches_minus_one_at_the_cache_of_the_32_gb_card() -> None:
    assert reward(0, 0, 30_300, alpha=0.0) == pytest.approx(-1.0, abs=1e-3)


def test_the_penalty_is_zero_for_the_best_instance_and_on_hold_and_positive_elsewhere() -> None:
    seen = view(3, in_flight_tokens=[900, 100, 2000], head_prompt_tokens=10)
    rewards = head_mixing_rewards(seen, jnp)
    assert int(jnp.argmax(rewards)) == 1
    penalties = [float(mixing_penalty(seen, jnp.int32(action), jnp)) for action in range(4)]
    assert penalties[1] == 0
    assert penalties[3] == 0
    assert penalties[0] == pytest.approx(float(rewards[1] - rewards[0]))
    assert penalties[2] > penalties[0] > 0
    empty = view(3, in_flight_tokens=[900, 100, 2000], queue_length=0)
    assert float(mixing_penalty(empty, jnp.int32(2), jnp)) == 0


def test_guidance_decays_as_printed() -> None:
    """The table of the guidance weight: 1.000, 0.607, 0.368, 0.223 ... 0.0067 at episode 10."""
    episodes = np.asarray([0, 1, 2, 3, 5, 10], np.float32)
    np.testing.assert_allclose(guidance_weight(episodes, np), [1, 0.607, 0.368, 0.223, 0.082, 0.0067], atol=5e-4)
