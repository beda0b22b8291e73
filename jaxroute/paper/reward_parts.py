"""What the paper's reward is made of in its main run: the mixing penalty beside all else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.env import ClusterRouting
from jaxroute.env_types import EnvParams, EnvState
from jaxroute.impact import head_mixing_rewards
from jaxroute.make_env import make
from jaxroute.paired import Interval, mean_interval
from jaxroute.paper.compare import REFERENCE
from jaxroute.paper.measure import Setting
from jaxroute.paper.part import Context
from jaxroute.policies import HEURISTICS
from jaxroute.types import RouterView

COLUMNS = ("mean", "spread", "jump", "penalty_range")


@dataclasses.dataclass(frozen=True)
class RewardParts:
    """Of the intervals in which there is a request to send, over seeds.

    Attributes:
      mean, spread: of an interval's reward without the mixing penalty; `spread` is its standard deviation.
      jump: standard deviation of how it differs from the interval before, over the square root of two: what of its
        spread is news from one interval to the next.
      penalty_range: mixing penalty of the worst server, on average; that of the best is 0.
    """

    mean: Interval
    spread: Interval
    jump: Interval
    penalty_range: Interval

    @property
    def samples(self) -> float:
        """Samples of one state from which the best server is told from the worst, at one standard error."""
        return 2 * (self.jump.value / self.penalty_range.value) ** 2


def reward_parts(context: Context, setting: Setting) -> RewardParts:
    """Measures what is not kept yet: round robin routes, the reward is the paper's."""
    rows = []
    for seed in context.seeds:
        key = {"what": "reward parts", "seed": seed, **setting.key()}
        rows.append(cast(Mapping[str, float], context.result(key, measurement(setting, seed))))
    return RewardParts(**{name: mean_interval(np.asarray([row[name] for row in rows])) for name in COLUMNS})


def measurement(setting: Setting, seed: int) -> Callable[[], Mapping[str, float]]:
    """Measures one seed when it is called."""

    def compute() -> Mapping[str, float]:
        env, params = make(
            fleet=setting.fleet,
            tables=[setting.table(seed)],
            prediction=setting.prediction,
            reward="paper",
            observation="paper",
            seed=seed,
        )
        sums = jax.device_get(_sums(env, params, jax.random.key(seed)))
        if not sums.ended:
            raise RuntimeError(f"{setting.name}, seed {seed}: the run came to no end")
        mean = sums.reward / sums.decisions
        return {
            "mean": float(mean),
            "spread": float(np.sqrt(sums.square / sums.decisions - mean**2)),
            "jump": float(np.sqrt(sums.jumped / sums.decisions / 2)),
            "penalty_range": float(sums.penalty_range / sums.decisions),
        }

    return compute


class _Sums(NamedTuple):
    """Over the intervals with a request to send; `last` is the reward of the interval before, whatever it was."""

    decisions: jax.Array
    reward: jax.Array
    square: jax.Array
    jumped: jax.Array
    penalty_range: jax.Array
    last: jax.Array
    ended: jax.Array


@partial(jax.jit, static_argnames=("env",))
def _sums(env: ClusterRouting, params: EnvParams, key: jax.Array) -> _Sums:
    policy = HEURISTICS[REFERENCE]

    def goes_on(now: tuple[EnvState, object, _Sums]) -> jax.Array:
        state, _, sums = now
        return ~sums.ended & ~env.is_truncated(state, params)

    def interval(now: tuple[EnvState, object, _Sums]) -> tuple[EnvState, object, _Sums]:
        state, own, sums = now
        own_key = jax.random.fold_in(key, state.time)
        view = env.view(state, params)
        action, own = policy.act(own, view, own_key)
        _, state, reward, ended, _ = env.step_env(own_key, state, action, params)
        decides = (view.queue_length > 0).astype(jnp.float32)
        sums = _Sums(
            decisions=sums.decisions + decides,
            reward=sums.reward + decides * reward,
            square=sums.square + decides * reward**2,
            jumped=sums.jumped + decides * (reward - sums.last) ** 2,
            penalty_range=sums.penalty_range + decides * _penalty_range(view),
            last=reward,
            ended=ended,
        )
        return state, own, sums

    _, state = env.reset_env(key, params)
    nothing = jnp.float32(0)
    start = _Sums(nothing, nothing, nothing, nothing, nothing, nothing, jnp.bool(False))
    return jax.lax.while_loop(goes_on, interval, (state, policy.initial_state(env.instances), start))[2]


def _penalty_range(view: RouterView) -> jax.Array:
    rewards = head_mixing_rewards(view, jnp)
    return jnp.max(rewards) - jnp.min(rewards)
