"""(d) Time between tokens: its average by request, its distribution, and the spikes that incoming prompts make."""

from __future__ import annotations

import numpy as np

from jaxroute.paper.compare import REFERENCE, name_of
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.partitions import partitions_remark, partitions_table, spreads
from jaxroute.paper.timelines import MainRun, main_run
from jaxroute.token_gaps import SPIKE

MS = 1e3

PRINTED_AXIS_S, PRINTED_SPIKE_AXIS_S = 0.5, 0.3
"""Where the axes of the paper's figures 5a and 5b, and 1a, end; it prints no number of TBT."""


def run(context: Context) -> Findings:
    """Simulates the paper's main run and looks at its tokens."""
    found = main_run(context)
    context.report("eight requests, all ways to share them")
    shared = {scheduler: spreads(context, scheduler) for scheduler in ("prefill-first", "chunked")}
    command, seeds = context.command(PART.letter), context.seeds_text()
    return Findings(
        setting=(
            *found.sentences,
            "TBT is the paper's: the average over a request's tokens, pauses by preemption included. A spike is a gap "
            f"between two tokens of an instance, {SPIKE:g} times as long as its median one without a prompt, in which "
            "it computed prompts; those of restarted requests count as well.",
        ),
        tables=(
            _tbt_table(found, command, seeds),
            _spikes_table(found, command, seeds),
            partitions_table(shared, command, seeds),
        ),
        pictures=_pictures(found, context, command),
        remarks=(*remarks(found), partitions_remark(shared)),
        commands=(found.simulate_command(),),
    )


def _tbt_table(found: MainRun, command: str, seeds: str) -> Table:
    columns = (("tbt_mean_s", "mean"), ("tbt_sd_s", "spread over requests"), ("tbt_p99_s", "p99"))
    thirds = (("tbt_early_s", "first third to arrive"), ("tbt_late_s", "last third"))
    rows = []
    for name in found.policies:
        cells = [Cell(found.mean(name, column, MS), decimals=1) for column, _ in (*columns, *thirds)]
        change = Cell(text="-") if name == REFERENCE else Cell(found.change(name, "tbt_mean_s"), signed=True)
        rows.append(Row(name_of(name), (*cells, change)))
    return Table(
        title="Average time between tokens of a request, ms",
        columns=("router", *(heading for _, heading in (*columns, *thirds)), "mean against round robin, %"),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note=f"The paper prints no numbers; the axes of its figures 5a and 5b end at {MS * PRINTED_AXIS_S:.0f} ms.",
    )


def _spikes_table(found: MainRun, command: str, seeds: str) -> Table:
    rows = []
    for name in found.policies:
        cells = (
            Cell(found.mean(name, "spikes"), decimals=0),
            Cell(found.mean(name, "spikes_per_1000"), decimals=1),
            Cell(found.mean(name, "spike_mean_s", MS), decimals=0),
            Cell(found.mean(name, "spike_max_s", MS), decimals=0),
            Cell(found.mean(name, "spike_time_share", 100), decimals=1),
            Cell(found.mean(name, "plain_gap_s", MS), decimals=1),
        )
        rows.append(Row(name_of(name), cells))
    return Table(
        title="Spikes of the time between tokens",
        columns=("router", "spikes", "in 1,000 gaps", "mean, ms", "longest, ms", "of all time, %", "gap without, ms"),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note=f"The paper prints no counts here; the axis of its figure 1a ends at {MS * PRINTED_SPIKE_AXIS_S:.0f} ms.",
    )


def _pictures(found: MainRun, context: Context, command: str) -> tuple[Picture, ...]:
    from jaxroute.plots_tokens import spikes_picture, tbt_picture

    first = {name_of(name): found.runs[name][0] for name in found.policies}
    quantiles = {
        name_of(name): np.mean([each["tbt_quantiles_s"] for each in found.runs[name]], axis=0)
        for name in found.policies
    }
    seed = f"seed {found.seeds[0]:,}"
    return (
        Picture(
            "d-tbt",
            tbt_picture(first, quantiles),
            f"Average TBT of the requests: distribution (mean over {context.seeds_text()}), and by arrival ({seed}).",
            command,
        ),
        Picture(
            "d-spikes",
            spikes_picture(first),
            f"The longest gap between tokens of instance 0 in each bin of time, {seed}; orange where prompts came in "
            "between, the line is the median gap without.",
            command,
        ),
    )


def remarks(found: MainRun) -> tuple[str, ...]:
    """What the records say of what the paper says of TBT."""
    return tuple(filter(None, (_early_late(found), _spread(found), _size(found), _why(found))))


def _early_late(found: MainRun) -> str:
    """The paper: round robin is better for those that arrive early, worse for the later ones (its figure 5)."""
    learned = [name for name in found.policies if name != REFERENCE]
    if not learned:
        return ""
    texts = []
    for name in learned:
        early, late = (found.change(name, f"tbt_{when}_s") for when in ("early", "late"))
        texts.append(
            f"{name_of(name)} {early.value:+.1f} % [{early.low:+.1f}, {early.high:+.1f}] early, {late.value:+.1f} % "
            f"[{late.low:+.1f}, {late.high:+.1f}] late"
        )
    agrees = all(
        found.change(name, "tbt_early_s").value > 0 > found.change(name, "tbt_late_s").value for name in learned
    )
    verdict = "So it is here" if agrees else "It is not so here"
    return (
        "The paper has round robin better for requests that arrive early and worse for later ones. "
        f"{verdict}: against round robin, the average TBT of the first and last third to arrive is {'; '.join(texts)}."
    )


def _spread(found: MainRun) -> str:
    """The paper: workload-guided RL has the least variance."""
    spreads = {name: found.mean(name, "tbt_sd_s", MS) for name in found.policies}
    least = min(spreads, key=lambda name: spreads[name].value)
    if "guided" not in spreads:
        return ""
    change = found.change("guided", "tbt_sd_s")
    sure = "" if change.low > 0 or change.high < 0 else ", which is within its interval"
    return (
        f"The paper has the least variance with workload-guided RL. Here it is with {name_of(least)} "
        f"({spreads[least].value:.1f} ms over the requests); guided is {change.value:+.1f} % [{change.low:+.1f}, "
        f"{change.high:+.1f}] against round robin{sure}."
    )


def _size(found: MainRun) -> str:
    mean, top = found.mean(REFERENCE, "tbt_mean_s", MS), found.mean(REFERENCE, "tbt_p99_s", MS)
    plain = found.mean(REFERENCE, "plain_gap_s", MS)
    return (
        f"Under round robin a request's TBT is {mean.value:.0f} ms on average and {top.value:.0f} ms at the 99th "
        f"percentile, against {plain.value:.0f} ms for a plain decode step; the axis of the paper's figure 5 ends at "
        f"{MS * PRINTED_AXIS_S:.0f} ms."
    )


def _why(found: MainRun) -> str:
    """What is behind it: prompts in between, or pauses by preemption."""
    texts = []
    for name in found.policies:
        plain, mean = (float(found.column(name, column).mean()) for column in ("plain_gap_s", "tbt_mean_s"))
        stalled = float(found.column(name, "spike_time_share").mean())
        count = float(found.column(name, "preemptions").mean())
        texts.append(
            f"{name_of(name)}: TBT {mean / plain:.1f} times a plain step, {100 * stalled:.0f} % of decoding time in "
            f"spikes, {count:,.0f} preemptions"
        )
    return (
        "What lengthens the time between tokens, from the records: "
        + "; ".join(texts)
        + ". A preempted request waits for room before its next token, so TBT follows preemptions as well as prompts."
    )


PART = Part(
    letter="d",
    name="tbt",
    title="Time between tokens",
    paper="figures 1a, 2, 5a and 5b",
    run=run,
)
