"""What the learning curves of part (j) say of guidance and exploration, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxroute.impact import guidance_weight
from jaxroute.paired import Interval, mean_interval
from jaxroute.paper.guidance_curves import MEASURES, Curve
from jaxroute.paper.latency import IMPROVEMENTS
from jaxroute.paper.reward_parts import COLUMNS, RewardParts
from jaxroute.paper.variants import MIXING_EFFORT

WEIGHS = 0.01
"""Guidance that weighs less is over."""


def remarks(curves: Mapping[str, Curve], imitated: Mapping[str, Interval], parts: RewardParts) -> tuple[str, ...]:
    """What the curves say of guidance and exploration.

    Args:
      curves: by variant.
      imitated: change of the mean E2E and of the makespan under what the guidance imitates, %.
      parts: what the reward is made of.
    """
    found = [*_of_guidance(curves), _of_imitation(imitated), _of_reward(parts), *_of_mixing(curves)]
    return (*found, *_of_exploration(curves))


def _of_guidance(curves: Mapping[str, Curve]) -> list[str]:
    plain = curves.get("baseline-curve")
    if plain is None:
        return []
    texts = []
    for name in ("aware-curve", "guided-curve"):
        if name in curves:
            first, _, last = (mean_interval(of(curves[name]) - of(plain)) for _, of in MEASURES)
            texts.append(
                f"{curves[name].label} {first.value:+.1f} points [{first.low:+.1f}, {first.high:+.1f}] at the first "
                f"validation, {last.value:+.1f} [{last.low:+.1f}, {last.high:+.1f}] in the last third "
                f"({_verdict(last)})"
            )
    aware, guided = (IMPROVEMENTS[name] - IMPROVEMENTS["baseline"] for name in ("aware", "guided"))
    return [
        f"In the paper constant guidance takes {aware:.2f} points of the makespan off its baseline, decaying guidance "
        f"{guided:.2f}. Here, in mean E2E against no guidance: {'; '.join(texts)}. At {plain.first_steps:,} intervals "
        f"the unguided policy is at {plain.first().mean():+.1f} %, in the last third at "
        f"{plain.settled().mean():+.1f} %." + _left_to_speed_up(plain)
    ]


def _verdict(change: Interval) -> str:
    if change.high < 0:
        return "it helps"
    return "it harms" if change.low > 0 else "no difference is shown"


def _left_to_speed_up(plain: Curve) -> str:
    """How much of what it gains a policy lacks at its first validation."""
    first, settled = float(plain.first().mean()), float(plain.settled().mean())
    if settled >= 0:
        return ""
    if first <= settled:
        return (
            " So it has all of its gain at its first validation and loses some again: there is nothing for guidance to "
            "speed up, but something to keep."
        )
    return f" So {100 * (1 - first / settled):.0f} % of its gain is left for guidance to speed up after that."


def _of_imitation(imitated: Mapping[str, Interval]) -> str:
    mean, makespan = (imitated[column] for column in ("e2e_mean_s", "makespan_s"))
    return (
        "What guidance teaches: among servers that are alike, h is 0 for the one with the fewest tokens in flight and "
        f"nothing else. That rule itself has a mean E2E {mean.value:+.1f} % [{mean.low:+.1f}, {mean.high:+.1f}] and a "
        f"makespan {makespan.value:+.1f} % [{makespan.low:+.1f}, {makespan.high:+.1f}] against round robin in the main "
        "run."
    )


def _of_reward(parts: RewardParts) -> str:
    mean, spread, jump, penalty = (getattr(parts, name).value for name in COLUMNS)
    return (
        "And h is small beside the rest of the reward: under round robin in the main run an interval that has a "
        f"request to send is rewarded with {mean:.0f} on average without it, with a standard deviation of "
        f"{spread:.0f}, of which {jump:.0f} is new from one interval to the next (a completion is 60), and h of the "
        f"worst server is {penalty:.2g} above that of the best. By h they are told apart from {parts.samples:,.0f} "
        "samples of one state; PPO's critic and its twins take such noise out, the Double DQN has nothing that does."
    )


def _of_mixing(curves: Mapping[str, Curve]) -> list[str]:
    alone, whole = curves.get("dqn-mixing-curve"), curves.get("dqn-curve")
    if alone is None or whole is None:
        return []
    share = 100 * MIXING_EFFORT
    return [
        f"It is not the algorithm: with h as its whole reward (and no holding, for which h is 0) the Double DQN is at "
        f"{alone.settled().mean():+.1f} % in its last third, after {share:.0f} % of the intervals; with the paper's "
        f"reward at {whole.settled().mean():+.1f} %."
    ]


def _of_exploration(curves: Mapping[str, Curve]) -> list[str]:
    episodes = np.arange(31)
    weights = np.asarray(guidance_weight(episodes, np))
    over = int(episodes[weights < WEIGHS][0])
    texts = [
        f"The paper explores for 30 episodes (slides) or 20 (text), but its guidance weighs less than {WEIGHS:g} from "
        f"episode {over} on ({weights[20]:.0e} at 20): it is gone before the exploration is."
    ]
    texts += filter(None, map(_explored_while_guided, curves.values()))
    return [*texts, *_schedules(curves)]


def _explored_while_guided(curve: Curve) -> str:
    weighs = curve.guidance >= WEIGHS
    if not len(curve.exploration) or not weighs.any():
        return ""
    return (
        f"{curve.label}: while guidance weighed {WEIGHS:g} or more {100 * curve.exploration[weighs].mean():.0f} % of "
        f"the actions were random ({100 * curve.exploration.mean():.0f} % over the whole training); "
        f"{curve.settled().mean():+.1f} % in the last third."
    )


def _schedules(curves: Mapping[str, Curve]) -> list[str]:
    own = curves.get("dqn-curve")
    others: Sequence[str] = [name for name in ("dqn-20-curve", "dqn-every-curve", "dqn-steady-curve") if name in curves]
    if own is None or not others:
        return []
    parts = []
    for name in others:
        change = mean_interval(curves[name].settled() - own.settled())
        parts.append(f"{curves[name].label} {change.value:+.1f} points [{change.low:+.1f}, {change.high:+.1f}]")
    return [f"Against the schedule of 30 episodes, in the last third: {'; '.join(parts)}."]
