"""(j) Learning with and without guidance, and the paper's schedule of exploration."""

from __future__ import annotations

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxroute.candidates import Candidate, candidate
from jaxroute.errors import InputError
from jaxroute.impact import guidance_weight
from jaxroute.learning import MEAN, SETTLED
from jaxroute.paired import Interval, mean_interval, relative_difference
from jaxroute.paper.compare import REFERENCE
from jaxroute.paper.latency import IMPROVEMENTS, REQUESTS, setting
from jaxroute.paper.measure import measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table, Unavailable
from jaxroute.paper.variants import VARIANTS
from jaxroute.policies.kv_based import GatedCentralQueue
from jaxroute.train.scalars import FILE

PPO = {
    "baseline-curve": "no guidance (baseline RL)",
    "aware-curve": "constant (workload-aware)",
    "guided-curve": "decaying (workload-guided)",
}
"""Variants that are trained from several seeds, the one without guidance first."""

DQN = {
    "dqn-baseline-curve": "Double DQN, no guidance",
    "dqn-curve": "Double DQN, decaying, as in the paper",
    "dqn-20-curve": "Double DQN, decaying, exploration of 20 episodes",
    "dqn-steady-curve": "Double DQN, decaying, exploration of 10 % throughout",
}
"""The paper's algorithm: its schedules (the slides' 30 episodes and the text's 20), and another one."""

QUICK_DQN = {"dqn": "Double DQN, decaying, as in the paper"}
"""In the short form: the run that other parts use, of one seed."""

IMITATED = "fewest tokens in flight"
"""The server for which the mixing penalty is least where all are alike: it grows with the tokens in flight alone."""

WEIGHS = 0.01
"""Guidance that weighs less is over."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The validations of a training run: change of the mean E2E against round robin, %.

    Attributes:
      label: of the run.
      path: its `metrics.csv`.
      gains: seed -> [validations].
      first_steps: router intervals of a seed at the first validation.
      exploration: [updates] chance of a random action, mean over the seeds; empty where there is none.
      guidance: [updates] weight of the mixing penalty; likewise.
      hold_share: of the decisions in the last update; NaN where it was not counted.
    """

    label: str
    path: Path
    gains: Mapping[str, np.ndarray]
    first_steps: int
    exploration: np.ndarray
    guidance: np.ndarray
    hold_share: float

    def first(self) -> np.ndarray:
        """[seeds] at the first validation."""
        return np.asarray([each[0] for each in self.gains.values()])

    def whole(self) -> np.ndarray:
        """[seeds] mean over all validations: the lower, the sooner it learned."""
        return np.asarray([each.mean() for each in self.gains.values()])

    def settled(self) -> np.ndarray:
        """[seeds] mean over the last third."""
        return np.asarray([each[-max(1, round(SETTLED * len(each))) :].mean() for each in self.gains.values()])


MEASURES = (("at the first validation", Curve.first), ("mean of all", Curve.whole), ("last third", Curve.settled))


def run(context: Context) -> Findings:
    """Trains what is not trained yet, and puts the curves side by side."""
    names = PPO | (QUICK_DQN if context.quick else DQN)
    curves, missing = {}, []
    for name, label in names.items():
        try:
            curves[name] = read_curve(label, context.trained(name) / FILE)
        except Unavailable as error:
            missing.append(str(error))
    requests = context.requests(REQUESTS)
    imitated = Candidate(IMITATED, GatedCentralQueue(IMITATED, kv_share=1e6, most_awaiting=2**30))
    [measured] = measure(context, [setting(requests)], [candidate(REFERENCE), imitated])
    changes = {
        column: relative_difference(measured[IMITATED][column], measured[REFERENCE][column])
        for column in ("e2e_mean_s", "makespan_s")
    }
    command = context.command(PART.letter)
    steps = context.effort.train_steps
    return Findings(
        setting=(
            "Every variant is trained from nothing (no prior) on four V100 with 3,800 KV tokens, at 0.9 and 1.8 of "
            "their capacity, and validated on requests of its own against round robin. The reward is the paper's; only "
            "the weight of the mixing penalty h differs: 0, 1, or exp(-0.5 k), where the whole run stands for 20 "
            "episodes k. Intervals are over training seeds, so few that they say little.",
        ),
        tables=tuple(_tables(curves, command)),
        pictures=_pictures(curves, command),
        remarks=(*missing, *remarks(curves, changes)),
        cuts=_cuts(context),
        commands=tuple(VARIANTS[name].command(name, steps) for name in curves),
    )


def read_curve(label: str, path: Path) -> Curve:
    """Reads the `metrics.csv` of a finished run.

    Raises:
      InputError: nothing was validated in it.
    """
    gains: dict[str, list[float]] = defaultdict(list)
    columns: dict[str, dict[int, list[float]]] = {"exploration": defaultdict(list), "penalty_weight": defaultdict(list)}
    steps, holds, last = [], [], 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last = int(row["update"])
            if row[MEAN]:
                gains[row["seed"]].append(100 * float(row[MEAN]))
                steps.append(int(row["env_steps"]))
            for column, values in columns.items():
                if row.get(column):
                    values[last].append(float(row[column]))
            if row.get("hold_share"):
                holds.append((last, float(row["hold_share"])))
    if not gains:
        raise InputError(f"{path}: holds no validation; train for longer (--train-steps)")
    means = {name: np.asarray([np.mean(each) for each in values.values()]) for name, values in columns.items()}
    at_end = [share for update, share in holds if update == last]
    return Curve(
        label=label,
        path=path,
        gains={seed: np.asarray(values) for seed, values in gains.items()},
        first_steps=min(steps),
        exploration=means["exploration"],
        guidance=means["penalty_weight"],
        hold_share=float(np.mean(at_end)) if at_end else float("nan"),
    )


def _tables(curves: Mapping[str, Curve], command: str) -> list[Table]:
    rows = []
    for curve in curves.values():
        cells = [Cell(mean_interval(measure_of(curve)), signed=True, decimals=1) for _, measure_of in MEASURES]
        spread = curve.settled()
        rows.append(
            Row(
                curve.label,
                (
                    *cells,
                    Cell(text=f"{spread.min():+.1f} to {spread.max():+.1f}"),
                    Cell(text=f"{100 * curve.hold_share:.0f}"),
                    Cell(text=str(len(curve.gains))),
                ),
            )
        )
    headings = [heading for heading, _ in MEASURES]
    tables = [
        Table(
            title="Mean E2E against round robin while learning, %",
            columns=("guidance", *headings, "last third, least to most", "held in the end, %", "training seeds"),
            rows=tuple(rows),
            command=command,
            seeds="training seeds from 0",
        )
    ]
    if len(pairs := _pairs(curves)):
        tables.append(
            Table(
                title="What guidance changes, in points of that",
                columns=("difference", *headings),
                rows=tuple(
                    Row(name, tuple(Cell(each, signed=True, decimals=1) for each in differences))
                    for name, differences in pairs.items()
                ),
                command=command,
                seeds="paired training seeds from 0",
                note="Below 0: guidance is better.",
            )
        )
    return tables


def _pairs(curves: Mapping[str, Curve]) -> dict[str, list[Interval]]:
    """Each guided variant less its unguided one, seed by seed."""
    found = {}
    for plain in ("baseline-curve", "dqn-baseline-curve"):
        own = [name for name in (PPO if plain in PPO else DQN) if name != plain and name in curves]
        for name in own if plain in curves else []:
            title = f"{curves[name].label} less {curves[plain].label}"
            found[title] = [mean_interval(of(curves[name]) - of(curves[plain])) for _, of in MEASURES]
    return found


def _pictures(curves: Mapping[str, Curve], command: str) -> tuple[Picture, ...]:
    from jaxroute.plots_guidance import schedule_picture
    from jaxroute.training_plots import learning_curve

    found = [
        Picture(
            "j-learning",
            learning_curve([(curve.label, curve.path) for curve in curves.values()]),
            "Validated mean E2E against round robin while learning: means over training seeds, and their range.",
            command,
        )
    ]
    exploring = {curve.label: curve for curve in curves.values() if len(curve.exploration)}
    if exploring:
        found.append(
            Picture(
                "j-schedule",
                schedule_picture({label: (each.exploration, each.guidance) for label, each in exploring.items()}),
                "Chance of a random action, and weight of the guidance, over the share of the training that is done.",
                command,
            )
        )
    return tuple(found)


def _cuts(context: Context) -> tuple[str, ...]:
    if not context.quick:
        return ()
    return (
        f"Short form: {context.effort.train_steps:,} router intervals for each variant, and of the Double DQN only the "
        "run that other parts use (one seed, decaying guidance).",
    )


def remarks(curves: Mapping[str, Curve], imitated: Mapping[str, Interval]) -> tuple[str, ...]:
    """What the curves say of guidance and exploration.

    Args:
      curves: by variant.
      imitated: change of the mean E2E and of the makespan under what the guidance imitates, %.
    """
    found = [*_of_guidance(curves), _of_imitation(imitated)]
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
                f"validation, {last.value:+.1f} [{last.low:+.1f}, {last.high:+.1f}] in the last third"
            )
    aware, guided = (IMPROVEMENTS[name] - IMPROVEMENTS["baseline"] for name in ("aware", "guided"))
    return [
        f"In the paper constant guidance takes {aware:.2f} points of the makespan off its baseline, decaying guidance "
        f"{guided:.2f}. Here, in mean E2E against no guidance: {'; '.join(texts)}. At {plain.first_steps:,} intervals "
        f"the unguided policy is at {plain.first().mean():+.1f} %, in the end at {plain.settled().mean():+.1f} %."
        + _left_to_speed_up(plain)
    ]


def _left_to_speed_up(plain: Curve) -> str:
    """How much of what it gains a policy lacks at its first validation."""
    first, settled = float(plain.first().mean()), float(plain.settled().mean())
    if settled >= 0:
        return ""
    share = min(1.0, max(0.0, 1 - first / settled))
    return f" So {100 * share:.0f} % of what it gains is left for guidance to speed up after its first validation."


def _of_imitation(imitated: Mapping[str, Interval]) -> str:
    mean, makespan = (imitated[column] for column in ("e2e_mean_s", "makespan_s"))
    return (
        "The likely reason: among servers that are alike, h is 0 for the one with the fewest tokens in flight and "
        f"nothing else, so guidance teaches that rule. The rule itself has a mean E2E {mean.value:+.1f} % "
        f"[{mean.low:+.1f}, {mean.high:+.1f}] and a makespan {makespan.value:+.1f} % [{makespan.low:+.1f}, "
        f"{makespan.high:+.1f}] against round robin in the main run."
    )


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
    others: Sequence[str] = [name for name in ("dqn-20-curve", "dqn-steady-curve") if name in curves]
    if own is None or not others:
        return []
    parts = []
    for name in others:
        change = mean_interval(curves[name].settled() - own.settled())
        parts.append(f"{curves[name].label} {change.value:+.1f} points [{change.low:+.1f}, {change.high:+.1f}]")
    return [f"Against the schedule of 30 episodes, in the last third: {'; '.join(parts)}."]


PART = Part(
    letter="j",
    name="guidance",
    title="Learning with and without guidance",
    paper="sections 5.3 and 6, appendix A.9; slides",
    run=run,
)
