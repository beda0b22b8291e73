"""The table of the A100: Llama-3.1-8B at 80 requests a second, with and without chunked prefill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxroute.paper.compare import (
    LEARNED,
    REFERENCE,
    bound_by_recomputation,
    improved,
    improvement,
    mean,
    name_of,
    reason,
    records,
)
from jaxroute.paper.measure import A100, KV_TOKENS, Columns, Setting, entrants, fleet, measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.pictures import Dot, dots
from jaxroute.paper.variants import VARIANTS
from jaxroute.profiles import load_profile

REQUESTS, QUICK_REQUESTS, RATE, DT = 8000, 2000, 80.0, 0.01

SCHEDULERS = {"prefill-first": "no chunking", "chunked": "chunked"}

E2E_S = {
    ("prefill-first", REFERENCE): 248.41,
    ("prefill-first", "baseline"): 240.58,
    ("prefill-first", "aware"): 231.66,
    ("prefill-first", "guided"): 221.80,
    ("chunked", REFERENCE): 247.30,
    ("chunked", "baseline"): 240.68,
    ("chunked", "aware"): 231.12,
    ("chunked", "guided"): 220.93,
}
"""Printed, seconds, by (scheduler, policy)."""

IMPROVEMENTS = {
    ("prefill-first", "baseline"): 3.15,
    ("prefill-first", "aware"): 6.74,
    ("prefill-first", "guided"): 10.71,
    ("chunked", REFERENCE): 0.45,
    ("chunked", "baseline"): 3.11,
    ("chunked", "aware"): 6.96,
    ("chunked", "guided"): 11.06,
}
"""Printed, % below round robin without chunking."""

IMPROVEMENT = "% below round robin without chunking"

Found = Mapping[tuple[str, str], Columns]
"""By (scheduler, policy)."""


def setting(scheduler: str, requests: int, kv_tokens: int | None) -> Setting:
    """Four A100; without `kv_tokens` with the KV cache that the profile has."""
    size = "its own KV cache" if kv_tokens is None else f"{kv_tokens:,} KV tokens"
    servers = fleet(A100, scheduler=scheduler, kv_tokens=kv_tokens, dt=DT)
    return Setting(f"five-task on 4 x A100, {SCHEDULERS[scheduler]}, {size}", servers, requests, RATE)


def policies_of(context: Context) -> tuple[str, ...]:
    """Round robin and the paper's variants; trained again for the A100 but in the short form."""
    return REFERENCE, *(name if context.quick else f"{name}-a100" for name in LEARNED)


def run(context: Context) -> Findings:
    """See `Part.run`."""
    requests = context.requests(REQUESTS, QUICK_REQUESTS)
    names = policies_of(context)
    policies, missing = entrants(context, names)
    sizes = (KV_TOKENS, None)
    settings = [setting(scheduler, requests, size) for size in sizes for scheduler in SCHEDULERS]
    measured = measure(context, settings, policies)
    count = len(SCHEDULERS)
    starved, ample = (_by_scheduler(measured[at * count : (at + 1) * count]) for at in range(len(sizes)))
    command, seeds = context.command(PART.letter), context.seeds_text()
    tokens = load_profile(A100).kv_tokens
    title = "Four A100, Llama-3.1-8B, 80 requests/s"
    return Findings(
        setting=(
            f"Four {A100}, {requests:,} five-task requests at {RATE:g}/s, Poisson, the router told the right length "
            f"bucket 80 % of the time, one action each {1e3 * DT:g} ms (at 20 ms a router sends at most 50/s). The "
            f"paper states neither the number of requests (its throughputs fit about {REQUESTS:,}) nor the KV cache: "
            f"{KV_TOKENS:,} tokens are as many as in part (c), {tokens:,} the profile's own.",
        ),
        tables=(
            _table(
                f"{title}, {KV_TOKENS:,} KV tokens",
                starved,
                is_starved=True,
                is_whole=requests == REQUESTS,
                command=command,
                seeds=seeds,
            ),
            _table(
                f"{title}, {tokens:,} KV tokens", ample, is_starved=False, is_whole=False, command=command, seeds=seeds
            ),
            _records(starved, command, seeds),
        ),
        pictures=(_picture(starved, ample, tokens, command, f"{seeds}, {requests:,} requests"),),
        remarks=(*missing, *_remarks(starved, ample, requests)),
        cuts=_cuts(context, requests),
        commands=tuple(VARIANTS[name].command(name, context.effort.train_steps) for name in names if name in VARIANTS),
    )


def _by_scheduler(measured: Sequence[Mapping[str, Columns]]) -> Found:
    """Policies under the names of the paper's variants, whatever they were trained on."""
    return {
        (scheduler, policy.removesuffix("-a100")): own
        for scheduler, found in zip(SCHEDULERS, measured, strict=True)
        for policy, own in found.items()
    }


def _table(title: str, found: Found, *, is_starved: bool, is_whole: bool, command: str, seeds: str) -> Table:
    base = found["prefill-first", REFERENCE]

    def row(scheduler: str, policy: str, own: Columns) -> Row:
        key = scheduler, policy
        printed = IMPROVEMENTS.get(key) if is_starved else None
        chunked_base = found["chunked", REFERENCE]
        against_chunked = improved(own, chunked_base) if scheduler == "chunked" and policy != REFERENCE else Cell()
        return Row(
            f"{name_of(policy)}, {SCHEDULERS[scheduler]}",
            (
                mean(own, "makespan_s", E2E_S[key] if is_starved and is_whole else None),
                improved(own, base, printed=printed) if own is not base else Cell(text="0"),
                against_chunked,
                improved(own, base, "e2e_mean_s") if own is not base else Cell(text="0"),
                mean(own, "e2e_mean_s"),
                mean(own, "ttft_mean_s"),
                mean(own, "tbt_mean_s"),
                mean(own, "throughput_tokens_per_s", scale=0.25),
            ),
            headline=IMPROVEMENT if printed is not None else "",
        )

    return Table(
        title=title,
        columns=(
            "router, prefill",
            "makespan s",
            IMPROVEMENT,
            "% below round robin, chunked",
            "mean E2E, % lower",
            "mean E2E s",
            "mean TTFT s",
            "TBT s",
            "output tokens/s of a server",
        ),
        rows=tuple(row(*key, own) for key, own in found.items()),
        command=command,
        seeds=seeds,
    )


def _records(found: Found, command: str, seeds: str) -> Table:
    runs = ((f"{name_of(policy)}, {SCHEDULERS[scheduler]}", own) for (scheduler, policy), own in found.items())
    return records("policy", runs, command, seeds, title=f"From the records, {KV_TOKENS:,} KV tokens")


def _picture(starved: Found, ample: Found, tokens: int, command: str, text: str) -> Picture:
    panels = []
    for found, size in ((starved, KV_TOKENS), (ample, tokens)):
        for scheduler, label in SCHEDULERS.items():
            base = found["prefill-first", REFERENCE]["makespan_s"]
            lines = [
                Dot(
                    name_of(policy),
                    improvement(found[scheduler, policy]["makespan_s"], base),
                    IMPROVEMENTS.get((scheduler, policy)) if found is starved else None,
                )
                for own, policy in found
                if own == scheduler
            ]
            panels.append((f"{label}, {size:,} KV tokens", lines))
    return Picture(
        f"{PART.letter}-a100",
        dots(panels, "makespan, % below round robin\nwithout chunking"),
        f"Four A100, Llama-3.1-8B, 80 requests/s ({text}).",
        command,
    )


def _remarks(starved: Found, ample: Found, requests: int) -> tuple[str, ...]:
    base = starved["prefill-first", REFERENCE]
    remarks = [bound_by_recomputation(base)]
    for (scheduler, policy), printed in IMPROVEMENTS.items():
        own = starved.get((scheduler, policy))
        if own is not None and improved(own, base, printed=printed).differs:
            text = reason(policy, own, base, printed, base="round robin without chunking")
            remarks.append(f"{SCHEDULERS[scheduler]}: {text[0].lower()}{text[1:]}")
    plenty = ample["prefill-first", REFERENCE]
    arrivals_s, makespan_s = requests / RATE, float(np.mean(plenty["makespan_s"]))
    remarks.append(
        f"With the profile's own KV cache the last of {requests:,} requests arrives at {arrivals_s:.0f} s and the last "
        f"is done at {makespan_s:.1f} s under round robin, with {float(np.mean(plenty['preemptions'])):,.0f} "
        f"preemptions and {float(np.mean(plenty['in_flight_mean'])):.0f} requests in flight at a server. The printed "
        f"{E2E_S['prefill-first', REFERENCE]:.0f} s need servers that fall behind: little KV cache, or slower steps."
    )
    return tuple(remarks)


def _cuts(context: Context, requests: int) -> tuple[str, ...]:
    cuts = []
    if requests != REQUESTS:
        cuts.append(f"Cut to {requests:,} of {REQUESTS:,} requests: printed seconds have no counterpart.")
    if context.quick:
        cuts.append("Short form: policies are those of part (c); the paper, and the long form, train them on A100.")
    return tuple(cuts)


PART = Part("f", "a100", "A100 and chunked prefill", "Table 3, section 6.2", run)
