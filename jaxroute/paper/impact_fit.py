"""(i) The impact estimator against the time of engine steps: its gradients, and what its equations can mean."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from jaxroute.impact import EPSILON_S
from jaxroute.paired import Interval, mean_interval
from jaxroute.paper.impact_steps import (
    BATCHES,
    GRAD1,
    GRAD2,
    INSTANCES,
    LONGEST_PROMPT,
    MOST_CONTEXT,
    RATE,
    READINGS,
    SCHEDULER,
    Numbers,
    busy,
    designed,
)
from jaxroute.paper.measure import V100
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.profiles import StepProfile, load_profile

REQUESTS, QUICK_REQUESTS = 2000, 500

FIGURE_4B = (3.7e-2 - 3.4e-2) / 6000
"""Slope that the ticks of the paper's figure 4b span, seconds per token; those of 4a give grad1: 0.8 s / 2,500."""

FLOPS_PER_TOKEN, PEAK_FLOPS = 2 * 6.74e9, 125e12
"""Of Llama-2-7B without attention, and of a V100's tensor cores."""

MICRO = 1e6

SLOPE, HEADLINES = "µs a token", ("prefill: one prompt, alone", "prefill: one prompt, busy run")


def run(context: Context) -> Findings:
    """Fits lines to the engine steps of designed runs and of a busy one."""
    profile = load_profile(V100)
    key = {"part": "impact_fit", "profile": dataclasses.asdict(profile)}
    context.report("prompts alone, and batches that decode")
    planned = cast(Numbers, context.result({**key, "runs": "designed"}, designed(profile)))
    requests = context.requests(REQUESTS, QUICK_REQUESTS)
    found = []
    for seed in context.seeds:
        context.report(f"five tasks at {RATE:g} requests/s, seed {seed:,}")
        own = {**key, "runs": "busy", "requests": requests, "seed": seed}
        found.append(cast(Numbers, context.result(own, busy(profile, requests, seed))))
    command = context.command(PART.letter)
    return Findings(
        setting=_setting(profile, requests),
        tables=(
            _slopes_table(planned, found, command, context.seeds_text()),
            _readings_table(found, command, context.seeds_text()),
        ),
        pictures=_pictures(planned, found[0], context, command),
        remarks=remarks(planned, found),
        cuts=(f"{requests:,} of {REQUESTS:,} requests in the busy run",) if requests < REQUESTS else (),
        commands=(
            f"jaxroute simulate --workload five-task --profile {V100} --scheduler {SCHEDULER} --rate {RATE:g} "
            f"--requests {requests} --policy round-robin --seed {context.first_seed} --out DIR",
        ),
    )


def over_seeds(found: Sequence[Numbers], *path: str | int, scale: float = 1.0) -> Interval:
    """A number of the busy runs, by where it is in them, times `scale`."""

    def at(numbers: Numbers) -> float:
        value: Any = numbers
        for key in path:
            value = value[key]
        return scale * float(value)

    return mean_interval(np.asarray([at(each) for each in found]))


def _setting(profile: StepProfile, requests: int) -> tuple[str, ...]:
    return (
        f"Profile {V100} ({profile.provenance['status']}, {profile.provenance['error']}), {SCHEDULER}, with its whole "
        "KV cache: nothing is preempted, so the contexts of every step follow from the records of its requests.",
        f"Designed runs: prompts of 20 to {LONGEST_PROMPT:,} tokens, each alone (axis of the paper's figure 4a), and "
        f"batches of {', '.join(map(str, BATCHES))} sequences that decode to {MOST_CONTEXT:,} tokens (figure 4b).",
        f"Busy run: {requests:,} requests of the five tasks at {RATE:g} a second on {INSTANCES} instances under round "
        "robin. p: tokens of a prompt that is computed alone; S: those of the requests that the instance decodes then.",
        f"The paper does not print eps of equation 1: {EPSILON_S} s, its bound of a heavy prompt, is taken.",
    )


def _fixed(value: float) -> Interval:
    """Of a run in which nothing is random."""
    return Interval(value, math.nan, math.nan, 1)


def _slopes_table(planned: Numbers, found: Sequence[Numbers], command: str, seeds: str) -> Table:
    rows: list[tuple[str, Interval, Interval, float, str]] = []
    prompt = planned["prompt"]
    rows.append((HEADLINES[0], _fixed(MICRO * prompt["slope"]), _fixed(prompt["r2"]), GRAD1, "grad1"))
    for batch in planned["batches"]:
        name = f"decode: batch of {batch['size']}, alone"
        rows.append((name, _fixed(MICRO * batch["slope"]), _fixed(batch["r2"]), FIGURE_4B, "ticks of figure 4b"))
    for name, which, printed, source in (
        (HEADLINES[1], "prompt", GRAD1, "grad1"),
        ("decode: busy run, by tokens", "decode", GRAD2, "grad2"),
        ("decode: busy run, by tokens and sequences", "decode_held", GRAD2, "grad2"),
    ):
        slope, r2 = over_seeds(found, which, "slope", scale=MICRO), over_seeds(found, which, "r2")
        rows.append((name, slope, r2, printed, source))
    return Table(
        title="Slope of the time of an engine step",
        columns=("steps", SLOPE, "R² of the line", "what is printed"),
        rows=tuple(
            Row(
                name,
                (Cell(slope, MICRO * printed, source=source), Cell(r2, decimals=3), Cell(text=source)),
                headline=SLOPE if name in HEADLINES else "",
            )
            for name, slope, r2, printed, source in rows
        ),
        command=command,
        seeds=seeds,
        note="Without an interval: nothing is random in the designed runs.",
    )


def _readings_table(found: Sequence[Numbers], command: str, seeds: str) -> Table:
    rows = []
    for index, reading in enumerate(READINGS):
        ratio, r2 = (over_seeds(found, "readings", index, name) for name in ("ratio", "r2"))
        share = over_seeds(found, "readings", index, "in_range", scale=100)
        rows.append(Row(f"T_p = {reading.name}", (Cell(ratio), Cell(r2, decimals=2), Cell(share, decimals=1))))
    for name, where in (("-grad2 · S + p + d", "printed"), ("-grad2 · (S + p + d)", "mended")):
        share = over_seeds(found, "equation_2", where, scale=100)
        rows.append(Row(f"r_d = {name}", (Cell(text="-"), Cell(text="-"), Cell(share, decimals=1))))
    return Table(
        title="What equations 1 and 2 can mean, against the prompts of the busy run",
        columns=("reading", "median of T_p / step time", "R² of T_p and step time", "reward in its range, %"),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note="First of each: the slides. Ranges: r_p in [-1, 1], r_d in [-1, 0] (swapped in the paper); d = 0.",
    )


def _pictures(planned: Numbers, seen: Numbers, context: Context, command: str) -> tuple[Picture, ...]:
    from jaxroute.plots_impact import readings_picture, step_lines

    seed = f"seed {context.first_seed:,}"
    return (
        Picture(
            "i-impact",
            step_lines(planned, seen, prompt_slope=GRAD1, decode_slopes=(GRAD2, FIGURE_4B)),
            f"Time of an engine step over its tokens, {V100}: prompts alone and batches that decode, and the busy run "
            f"({seed}); dashed, what the paper's numbers say.",
            command,
        ),
        Picture(
            "i-readings",
            readings_picture([reading.name for reading in READINGS], seen["readings"]),
            f"What four readings of equation 1 say that a prompt costs, over what its step took in the busy run "
            f"({seed}); on the line both are the same.",
            command,
        ),
    )


def remarks(planned: Numbers, found: Sequence[Numbers]) -> tuple[str, ...]:
    """What the numbers say of the paper's."""
    alone, busy_slope = planned["prompt"], over_seeds(found, "prompt", "slope").value
    decode = float(np.mean([batch["slope"] for batch in planned["batches"]]))
    ours, theirs = (100 * FLOPS_PER_TOKEN / (slope * PEAK_FLOPS) for slope in (alone["slope"], GRAD1))
    resident = over_seeds(found, "per_resident", scale=MICRO)
    fits = [over_seeds(found, "readings", index, "r2").value for index in range(len(READINGS))]
    best, square = int(np.argmax(fits)), over_seeds(found, "readings", 0, "ratio").value
    printed, mended = (over_seeds(found, "equation_2", name, scale=100).value for name in ("printed", "mended"))
    largest = max(each["largest_resident"] for each in found)
    return (
        f"Prefill is linear in tokens as the paper finds (R² {alone['r2']:.3f}), at {MICRO * alone['slope']:.0f} µs a "
        f"token against {MICRO * GRAD1:.0f} ({100 * (alone['slope'] / GRAD1 - 1):+.0f} %); {MICRO * busy_slope:.0f} µs "
        "in the busy run, with its short prompts. The likely reason is the profile, which is derived, not measured; at "
        f"its slope the tensor cores reach {ours:.0f} % of their peak, at the printed one {theirs:.0f} %.",
        f"Decode is linear in tokens too, at {MICRO * decode:.2f} µs a token: {decode / FIGURE_4B:.1f} times what the "
        f"ticks of the paper's figure 4b span, and {decode / GRAD2:.3f} of grad2. So grad2 is no slope in seconds; it "
        f"maps {1 / GRAD2:,.0f} tokens to -1, about the profile's KV cache "
        f"({load_profile(V100).kv_tokens:,}; {largest:,} tokens ran at most here).",
        f"What an instance decodes is not in the time of a prompt: each resident token adds {resident.value:+.4f} µs "
        f"[{resident.low:+.4f}, {resident.high:+.4f}] to its step, where equation 1 adds {MICRO * GRAD1:.0f}. (It is "
        "in what the prompt costs all others: under prefill-first each of them waits for the whole step.)",
        f"With p², as the slides print it, equation 1 says {square:,.0f} times what a prompt takes (median). Of the "
        f"four readings, {READINGS[best].name} goes with the records best (R² {fits[best]:.2f}).",
        f"As printed, equation 2 gives a reward within [-1, 0] for {printed:.0f} % of the prompts, with a parenthesis "
        f"around all tokens for {mended:.0f} %.",
    )


PART = Part(
    letter="i",
    name="impact_fit",
    title="The impact estimator against the time of engine steps",
    paper="sections 4.3 and 5.2, figure 4",
    run=run,
)
