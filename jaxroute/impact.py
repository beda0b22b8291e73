"""The paper's workload-impact estimator (its equations 1 and 2), the mixing penalty, and the guidance schedule.

Every quantity is what a router knows: the tokens in flight at an instance are those it sent and saw stream back. The
functions take the array module (`numpy` or `jax.numpy`) as `xp`, so that a server can run them without jax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxroute.estimate import float32

if TYPE_CHECKING:
    from jaxroute.types import RouterView

Array = Any
"""An array of NumPy or of jax."""

ALPHA = 0.5
"""Weight of the prompt impact against the decode impact (section 6)."""

EPSILON_S = 0.5
"""Prompt impact that costs nothing, seconds. The paper does not print it; this is its bound of a heavy prompt."""

GUIDANCE_DECAY = 0.5
"""beta_d of the guidance schedule (section 6)."""


def prompt_impact(*, prompt_tokens: Array, tokens_in_flight: Array, grad1: Array, square: bool = True) -> Array:
    """T_p = grad1 * (p_i^2 + sum_j (p_j + d_j)), equation 1.

    Args:
      prompt_tokens: p_i of the request, float32.
      tokens_in_flight: sum of the prompt and output tokens so far of the instance's requests, float32.
      grad1: the profile's prompt gradient, seconds per token.
      square: p_i^2 as the slides print it; False for p_i, the other reading.
    """
    own = prompt_tokens**2 if square else prompt_tokens
    return grad1 * (own + tokens_in_flight)


def mixing_reward(
    *,
    prompt_tokens: Array,
    output_tokens: Array,
    tokens_in_flight: Array,
    grad1: Array,
    grad2: Array,
    alpha: float = ALPHA,
    epsilon_s: float = EPSILON_S,
    square: bool = True,
    xp: Any,
) -> Array:
    """r_mixing of adding a request to an instance; at most alpha.

    r_p is 1 up to `epsilon_s` and 1 - T_p / epsilon_s beyond it; r_d = -grad2 * (tokens in flight + p_i + d_i).

    Args:
      prompt_tokens: p_i, float32.
      output_tokens: d_i, predicted, float32.
      tokens_in_flight: as in `prompt_impact`.
      grad1, grad2: the profile's gradients.
      alpha: weight of r_p.
      epsilon_s: see above, seconds.
      square: as in `prompt_impact`.
      xp: `numpy` or `jax.numpy`.
    """
    impact = prompt_impact(prompt_tokens=prompt_tokens, tokens_in_flight=tokens_in_flight, grad1=grad1, square=square)
    prompt_reward = 1 - impact / epsilon_s * float32(impact > epsilon_s, xp)
    decode_reward = -grad2 * (tokens_in_flight + prompt_tokens + output_tokens)
    return alpha * prompt_reward + (1 - alpha) * decode_reward


def head_mixing_rewards(view: RouterView, xp: Any, *, square: bool = True) -> Array:
    """[I] float32, r_mixing of sending the head of the router queue to each instance."""
    return mixing_reward(
        prompt_tokens=float32(view.head_prompt_tokens, xp),
        output_tokens=float32(view.head_predicted_tokens, xp),
        tokens_in_flight=float32(view.in_flight_tokens, xp),
        grad1=view.profile.grad1,
        grad2=view.profile.grad2,
        square=square,
        xp=xp,
    )


def mixing_penalty(view: RouterView, action: Array, xp: Any, *, square: bool = True) -> Array:
    """h = max_m r_mixing(m) - r_mixing(chosen) >= 0; 0 where nothing is sent. [] float32."""
    rewards = head_mixing_rewards(view, xp, square=square)
    instances = rewards.shape[0]
    sends = (view.queue_length > 0) & (action >= 0) & (action < instances)
    chosen = rewards[xp.clip(action, 0, instances - 1)]
    return xp.where(sends, xp.max(rewards) - chosen, 0)


def guidance_weight(episode: Array, xp: Any, decay: float = GUIDANCE_DECAY) -> Array:
    """w_k = exp(-decay * k) of the workload-guided variant; k is the training progress in the paper's episodes."""
    return xp.exp(-decay * episode)
