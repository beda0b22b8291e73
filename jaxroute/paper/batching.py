"""Table 2: the order in which instances admit x routing, on the four synthetic sets, two instances."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxroute.paired import Interval, relative_difference
from jaxroute.paper.compare import mean, name_of, reason
from jaxroute.paper.measure import V100, Columns, Setting, entrants, fleet, measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.plots import BLUE, GREEN, GREY, ORANGE, tidy

REQUESTS, QUICK_REQUESTS, RATE = 3000, 600, 8.0

SETS = {
    "lh-hl-random": "LH, HL random",
    "all-random": "random",
    "lh-then-hl": "LH then HL",
    "hl-then-lh": "HL then LH",
}
BATCHINGS = {"bin-packing": "bin packing", "least-work-left": "least work left", "fcfs": "FCFS"}
ROUTINGS = {
    "dedicated-small-large": "dedicated small-large",
    "round-robin": "round robin",
    "decode-balancer": "decode balancer",
}
COUNTED = "join-shortest-queue"
"""In the slides' list, but with no row in the table."""

PRINTED: Mapping[tuple[str, str], tuple[float, float, float, float]] = {
    ("bin-packing", "dedicated-small-large"): (704.5, 644.75, 566.25, 588.15),
    ("bin-packing", "round-robin"): (581.5, 559.3, 424.8, 440.68),
    ("bin-packing", "decode-balancer"): (595.82, 555.4, 424.82, 440.81),
    ("least-work-left", "dedicated-small-large"): (704.5, 641.81, 566.25, 588.15),
    ("least-work-left", "round-robin"): (585.14, 554.00, 424.64, 440.82),
    ("least-work-left", "decode-balancer"): (596.95, 559.97, 424.66, 440.81),
    ("fcfs", "dedicated-small-large"): (704.5, 648.66, 566.25, 588.15),
    ("fcfs", "round-robin"): (607.45, 572.16, 424.80, 440.82),
    ("fcfs", "decode-balancer"): (605.65, 573.17, 424.82, 440.81),
}
"""Total end-to-end latency, seconds, by (batching, routing), of the sets in the order of `SETS`."""

BASE = ("fcfs", "round-robin")

HEADLINES = (("fcfs", "dedicated-small-large"), ("least-work-left", "round-robin"), ("fcfs", "decode-balancer"))
"""Shown in the README."""

Runs = Mapping[tuple[str, str, str], Columns]
"""Set, batching, routing -> columns."""


def run(context: Context) -> Findings:
    """See `Part.run`."""
    requests = context.requests(REQUESTS, QUICK_REQUESTS)
    runs = _measured(context, requests)
    command, seeds = context.command(PART.letter), context.seeds_text()
    picture = Picture(
        f"{PART.letter}-batching",
        _picture(runs),
        f"Makespan against round robin with FCFS, %, with 95 % intervals; diamonds: the paper ({seeds}, {requests:,} "
        "requests). Below 0 is better.",
        command,
    )
    tables = (_seconds(runs, requests, command, seeds), _changes(runs, command, seeds))
    return Findings(
        setting=(
            f"Two {V100}, prefill-first, the profile's own KV cache, {requests:,} requests at {RATE:g}/s, Poisson, the "
            "router told the true length bucket. The paper prints neither the classes' token counts nor a rate: heavy "
            "is what takes 0.5 s of prefill or 5 s of decode on this server, and the rate is such that the last of "
            "3,000 arrives before the shortest printed total, so that servers and not arrivals are the limit.",
        ),
        tables=tables,
        pictures=(picture,),
        remarks=_remarks(runs),
        cuts=_cuts(requests),
        commands=(
            f"jaxroute simulate --profile {V100} --instances 2 --scheduler prefill-first --batching least-work-left "
            f"--workload lh-hl-random --requests {requests} --rate {RATE:g} --seed {context.first_seed} --policy "
            f"{','.join(ROUTINGS)} --out DIR",
        ),
    )


def _cuts(requests: int) -> tuple[str, ...]:
    if requests == REQUESTS:
        return ()
    return (f"Cut to {requests:,} of {REQUESTS:,} requests: printed seconds have no counterpart, printed ratios do.",)


def _measured(context: Context, requests: int) -> Runs:
    policies, _ = entrants(context, [*ROUTINGS, COUNTED])
    runs: dict[tuple[str, str, str], Columns] = {}
    for batching in BATCHINGS:
        servers = fleet(V100, instances=2, kv_tokens=None, batching=batching)
        settings = [
            Setting(f"{name}, {BATCHINGS[batching]}", servers, requests, RATE, workload=name, prediction="oracle")
            for name in SETS
        ]
        for name, found in zip(SETS, measure(context, settings, policies), strict=True):
            runs |= {(name, batching, routing): columns for routing, columns in found.items()}
    return runs


def _seconds(runs: Runs, requests: int, command: str, seeds: str) -> Table:
    whole = requests == REQUESTS
    rows = [
        Row(
            f"{label}, {ROUTINGS[routing]}",
            tuple(
                mean(runs[name, batching, routing], "makespan_s", PRINTED[batching, routing][at] if whole else None)
                for at, name in enumerate(SETS)
            ),
        )
        for batching, label in BATCHINGS.items()
        for routing in ROUTINGS
    ]
    return Table(
        title="Total time, first arrival to last token, seconds",
        columns=("batching, routing", *SETS.values()),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
    )


def _changes(runs: Runs, command: str, seeds: str) -> Table:
    headings = tuple(f"{label}: makespan, %" for label in SETS.values())

    def cell(at: int, name: str, batching: str, routing: str) -> Cell:
        value = relative_difference(runs[name, batching, routing]["makespan_s"], runs[name, *BASE]["makespan_s"])
        printed = printed_change(batching, routing, at) if routing in ROUTINGS else None
        return Cell(value, printed, decimals=2, signed=True)

    rows = [
        Row(
            f"{label}, {ROUTINGS.get(routing) or name_of(routing)}",
            tuple(cell(at, name, batching, routing) for at, name in enumerate(SETS)),
            headline=headings[0] if (batching, routing) in HEADLINES else "",
        )
        for batching, label in BATCHINGS.items()
        for routing in (*ROUTINGS, COUNTED)
        if (batching, routing) != BASE
    ]
    return Table(
        title="Against round robin with FCFS",
        columns=("batching, routing", *headings),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note="Printed changes are computed from the printed seconds, to 0.01 %.",
    )


def printed_change(batching: str, routing: str, at: int) -> float:
    """The paper's change against round robin with FCFS, %, of the set at a place in `SETS`."""
    # Not -0.
    return round(100 * (PRINTED[batching, routing][at] / PRINTED[BASE][at] - 1), 2) + 0.0


def _remarks(runs: Runs) -> tuple[str, ...]:
    remarks = []
    for at, (name, label) in enumerate(SETS.items()):
        base = runs[name, *BASE]
        dedicated = "fcfs", "dedicated-small-large"
        text = reason(dedicated[1], runs[name, *dedicated], base, -printed_change(*dedicated, at))
        busiest = float(np.mean(runs[name, *dedicated]["most_share"]))
        orders = {
            BATCHINGS[each]: _change(runs[name, each, "round-robin"], base) for each in BATCHINGS if each != "fcfs"
        }
        order = ", ".join(f"{each} {value.value:+.2f} %" for each, value in orders.items())
        preempted = float(np.mean(base["preemptions"]))
        remarks.append(
            f"{label}: {text} Its busier server gets {100 * busiest:.0f} % of an even share of the requests. The order "
            f"of admission under round robin: {order}, with {preempted:,.0f} preemptions in {int(base['count'][0]):,} "
            "requests."
        )
    return tuple(remarks)


def _change(own: Columns, reference: Columns) -> Interval:
    return relative_difference(own["makespan_s"], reference["makespan_s"])


def _picture(runs: Runs) -> Figure:
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    panels = figure.subplots(1, len(SETS), sharey=True)
    colours = dict(zip(BATCHINGS, (ORANGE, GREEN, BLUE), strict=True))
    for at, (axes, (name, label)) in enumerate(zip(panels, SETS.items(), strict=True)):
        axes.axhline(0, color=GREY, lw=1.2, zorder=1)
        for place, routing in enumerate(ROUTINGS):
            for shift, (batching, colour) in enumerate(colours.items()):
                x = place + 0.22 * (shift - 1)
                value = _change(runs[name, batching, routing], runs[name, *BASE])
                if not math.isnan(value.low):
                    axes.vlines(x, value.low, value.high, color=colour, lw=1.8)
                axes.plot(x, value.value, "o", color=colour, ms=5)
                axes.plot(x, printed_change(batching, routing, at), "D", mfc="none", mec=colour, ms=5)
        axes.set_title(label, fontsize="medium")
        axes.set_xticks(
            range(len(ROUTINGS)), [each.replace(" ", "\n", 1) for each in ROUTINGS.values()], fontsize="small"
        )
        tidy(axes)
        axes.grid(False, axis="x")
    panels[0].set_ylabel("makespan against round robin, FCFS (%)")
    handles = [
        Line2D([], [], color=colour, marker="o", ms=5, lw=1.8, label=BATCHINGS[batching])
        for batching, colour in colours.items()
    ]
    handles.append(Line2D([], [], linestyle="", marker="D", mfc="none", mec=GREY, ms=5, label="printed in the paper"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


PART = Part("a", "batching", "Batching x routing on the synthetic sets", "Table 2, section 4.4", run)
