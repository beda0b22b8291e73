"""More instances: eight as in the paper's appendix, and beyond it 16 and 64, at five requests a second for each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from jaxroute.paper.compare import LEARNED, REFERENCE, improved, improvement, name_of, reason, records
from jaxroute.paper.measure import KV_TOKENS, V100, Columns, Setting, entrants, fleet, measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.variants import VARIANTS
from jaxroute.plots import GREY, policy_line_style, tidy

REQUESTS_EACH, QUICK_REQUESTS_EACH, RATE_EACH = 500, 250, 5.0
"""Of each instance, as in the main run."""

SIZES = {4: 0.02, 8: 0.01, 16: 0.005, 64: 0.00125}
"""Router interval, seconds, by instances: at most half of what the router can send."""

QUICK_SIZES = (4, 8)
MOST_SEEDS_OF = {64: 6}
"""The dearest fleets have fewer seeds."""

HEURISTICS = ("fewest-outstanding-tokens", "min-min")

IMPROVEMENTS = {
    4: {"baseline": 4.35, "aware": 7.79, "guided": 11.43},
    8: {"baseline": 5.84, "aware": 6.64, "guided": 11.62},
}
"""Printed, % below round robin, by instances."""

QUANTITIES_SHOWN = (
    "makespan s",
    "mean E2E s",
    "recomputed, % of all tokens",
    "idle servers, % of time",
    "router wait s",
    "most requests of a server, % of an even share",
)

Found = Mapping[int, Mapping[str, Columns]]
"""By instances and policy, trained ones under the names of the paper's variants."""


def setting(instances: int, requests_each: int) -> Setting:
    """The main run with more servers."""
    servers = fleet(V100, instances=instances, kv_tokens=KV_TOKENS, dt=SIZES[instances])
    requests, rate = requests_each * instances, RATE_EACH * instances
    return Setting(f"five-task on {instances} x V100, {KV_TOKENS:,} KV tokens", servers, requests, rate)


def policies_of(context: Context, instances: int) -> tuple[str, ...]:
    """Heuristics and the variants; for eight instances and more they are trained on eight, but in the short form."""
    ending = "" if context.quick or instances < 8 else "-8"
    return REFERENCE, *HEURISTICS, *(name + ending for name in LEARNED)


def run(context: Context) -> Findings:
    """See `Part.run`."""
    each = context.requests(REQUESTS_EACH, QUICK_REQUESTS_EACH)
    sizes = QUICK_SIZES if context.quick else tuple(SIZES)
    found: dict[int, Mapping[str, Columns]] = {}
    missing: tuple[str, ...] = ()
    for instances in sizes:
        policies, missing = entrants(context, policies_of(context, instances))
        seeds = context.first_seeds(MOST_SEEDS_OF.get(instances, context.effort.seeds))
        [own] = measure(context, [setting(instances, each)], policies, seeds)
        found[instances] = {name.removesuffix("-8"): columns for name, columns in own.items()}
    command, seeds_text = context.command(PART.letter), _seeds_text(context, sizes)
    trained = {name for size in sizes for name in policies_of(context, size) if name in VARIANTS}
    return Findings(
        setting=(
            f"{V100} with {KV_TOKENS:,} KV tokens, prefill-first, five-task, {RATE_EACH:g} requests/s and {each} "
            "requests for each instance, so that every size is as loaded as the main run; the router acts each "
            f"{', '.join(f'{1e3 * SIZES[size]:g} ms ({size})' for size in sizes)}.",
        ),
        tables=(_improvements(found, command, seeds_text), _records(found, command, seeds_text)),
        pictures=(
            Picture(
                f"{PART.letter}-instances",
                _picture(found),
                "Makespan and mean E2E against round robin over the number of instances, with 95 % intervals; "
                f"diamonds: the paper ({seeds_text}).",
                command,
            ),
        ),
        remarks=(*missing, *_remarks(found)),
        cuts=_cuts(context, each),
        commands=tuple(VARIANTS[name].command(name, context.effort.train_steps) for name in sorted(trained)),
    )


def _seeds_text(context: Context, sizes: tuple[int, ...]) -> str:
    fewer = {size: most for size, most in MOST_SEEDS_OF.items() if size in sizes and most < context.effort.seeds}
    exceptions = "".join(f"; {most} of them for {size} instances" for size, most in fewer.items())
    return context.seeds_text() + exceptions


def _improvements(found: Found, command: str, seeds: str) -> Table:
    policies = [name for name in next(iter(found.values())) if name != REFERENCE]

    def cell(instances: int, policy: str, column: str) -> Cell:
        own = found[instances]
        printed = IMPROVEMENTS.get(instances, {}).get(policy) if column == "makespan_s" else None
        return improved(own[policy], own[REFERENCE], column, printed)

    columns = (("makespan", "makespan_s"), ("mean E2E", "e2e_mean_s"))
    return Table(
        title="% below round robin, by number of instances",
        columns=("router", *(f"{label}, {size}" for label, _ in columns for size in found)),
        rows=tuple(
            Row(
                name_of(policy),
                tuple(cell(size, policy, column) for _, column in columns for size in found),
                headline="makespan, 8" if policy in IMPROVEMENTS[8] and 8 in found else "",
            )
            for policy in policies
        ),
        command=command,
        seeds=seeds,
    )


def _records(found: Found, command: str, seeds: str) -> Table:
    runs = (
        (f"{size} instances, {name_of(policy)}", own)
        for size, policies in found.items()
        for policy, own in policies.items()
    )
    return records("fleet, router", runs, command, seeds, quantities=QUANTITIES_SHOWN)


def _remarks(found: Found) -> tuple[str, ...]:
    remarks = []
    for size, printed in IMPROVEMENTS.items():
        own = found.get(size, {})
        for policy, value in printed.items():
            if policy in own and improved(own[policy], own[REFERENCE], printed=value).differs:
                remarks.append(f"{size} instances: {reason(policy, own[policy], own[REFERENCE], value)}")
    spread = {size: float(np.mean(own[REFERENCE]["idle_share"])) for size, own in found.items()}
    text = ", ".join(f"{100 * share:.1f} % of {size}" for size, share in spread.items())
    remarks.append(
        f"Under round robin the servers are idle for {text} instances' time: the more there are, the later the last of "
        "them is done, and that is what a router can even out in the makespan."
        if list(spread.values()) == sorted(spread.values())
        else f"Under round robin the servers are idle for {text} instances' time."
    )
    return tuple(remarks)


def _cuts(context: Context, each: int) -> tuple[str, ...]:
    cuts = []
    if each != REQUESTS_EACH:
        cuts.append(f"Cut to {each} of {REQUESTS_EACH} requests for each instance.")
    if context.quick:
        cuts.append(
            "Short form: no 16 and 64 instances, and policies are those of four instances, not trained again on eight."
        )
    return tuple(cuts)


def _picture(found: Found) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    sizes = list(found)
    policies = [name for name in found[sizes[0]] if name != REFERENCE]
    for axes, (label, column) in zip(panels, (("makespan", "makespan_s"), ("mean E2E", "e2e_mean_s")), strict=True):
        axes.axhline(0, color=GREY, lw=1.2, zorder=1)
        for index, policy in enumerate(policies):
            style = policy_line_style(index)
            x = np.arange(len(sizes)) + 0.08 * (index - (len(policies) - 1) / 2)
            gains = [improvement(found[size][policy][column], found[size][REFERENCE][column]) for size in sizes]
            axes.plot(x, [gain.value for gain in gains], marker="o", ms=4.5, lw=1.4, label=name_of(policy), **style)
            axes.vlines(x, [gain.low for gain in gains], [gain.high for gain in gains], color=style["color"], lw=1.6)
            for at, size in enumerate(sizes):
                printed = IMPROVEMENTS.get(size, {}).get(policy)
                if column == "makespan_s" and printed is not None:
                    axes.plot(x[at], printed, "D", mfc="none", mec=style["color"], ms=6)
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_ylabel(f"{label}, % below round robin")
        tidy(axes, xlabel="instances")
        axes.grid(False, axis="x")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


PART = Part("g", "instances", "More instances", "Appendix A.11; 16 and 64 beyond it", run)
