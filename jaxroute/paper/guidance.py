"""(j) Learning with and without guidance, and the paper's schedule of exploration."""

from __future__ import annotations

from collections.abc import Mapping

from jaxroute.candidates import Candidate, candidate
from jaxroute.paired import Interval, mean_interval, relative_difference
from jaxroute.paper.compare import REFERENCE
from jaxroute.paper.guidance_curves import MEASURES, Curve, read_curve
from jaxroute.paper.guidance_remarks import remarks
from jaxroute.paper.latency import REQUESTS, setting
from jaxroute.paper.measure import measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table, Unavailable
from jaxroute.paper.reward_parts import reward_parts
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
    "dqn-every-curve": "Double DQN, decaying, exploration in every episode",
    "dqn-steady-curve": "Double DQN, decaying, exploration of 10 % throughout",
}
"""The paper's algorithm: its schedules (the slides' 30 episodes and the text's 20), and two others."""

ALONE = {"dqn-mixing-curve": "Double DQN, no reward but -h, no holding"}
"""The paper's algorithm with a reward that is no more than the penalty that guides the others."""

QUICK_DQN = {"dqn": "Double DQN, decaying, as in the paper"}
"""In the short form: the run that other parts use, of one seed."""

IMITATED = "fewest tokens in flight"
"""The server for which the mixing penalty is least where all are alike: it grows with the tokens in flight alone."""


def run(context: Context) -> Findings:
    """Trains what is not trained yet, and puts the curves side by side."""
    names = PPO | (QUICK_DQN if context.quick else DQN | ALONE)
    curves, missing = {}, []
    for name, label in names.items():
        try:
            curves[name] = read_curve(label, context.trained(name) / FILE)
        except Unavailable as error:
            missing.append(str(error))
    main = setting(context.requests(REQUESTS))
    imitated = Candidate(IMITATED, GatedCentralQueue(IMITATED, kv_share=1e6, most_awaiting=2**30))
    [measured] = measure(context, [main], [candidate(REFERENCE), imitated])
    changes = {
        column: relative_difference(measured[IMITATED][column], measured[REFERENCE][column])
        for column in ("e2e_mean_s", "makespan_s")
    }
    parts = reward_parts(context, main)
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
        remarks=(*missing, *remarks(curves, changes, parts)),
        cuts=_cuts(context),
        commands=tuple(VARIANTS[name].command(name, steps) for name in curves),
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


PART = Part(
    letter="j",
    name="guidance",
    title="Learning with and without guidance",
    paper="sections 5.3 and 6, appendix A.9; slides",
    run=run,
)
