"""Other hardware: the shipped profiles, and a mixed fleet, as loaded as the main run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from jaxroute.paper.compare import LEARNED, REFERENCE, improved, improvement, name_of, reason, records
from jaxroute.paper.measure import A100, KV_TOKENS, V100, Columns, Setting, entrants, fleet, measure
from jaxroute.paper.part import Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.pictures import Dot, dots
from jaxroute.profiles import load_profile

REQUESTS, QUICK_REQUESTS, RATE = 2000, 600, 20.0

BATCH, CONTEXT = 20, 180
"""Requests and tokens of each in the decode step by which a server's speed is told: what 3,800 KV tokens hold."""

DT = 0.01


@dataclasses.dataclass(frozen=True)
class Kind:
    """A fleet of four.

    Attributes:
      name: in tables.
      profiles: one for each instance.
      printed: % below round robin, by variant, where the paper has it.
      is_quick: whether the short form has it.
    """

    name: str
    profiles: tuple[str, ...]
    printed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    is_quick: bool = True

    @property
    def rate_per_s(self) -> float:
        """20 requests a second on four V100, and as many more as the servers decode faster."""
        return RATE * float(np.mean([step_ms(V100) / step_ms(name) for name in self.profiles]))


A100_LLAMA2, H100_LLAMA2, H100 = "a100-80gb-llama2-7b", "h100-80gb-llama2-7b", "h100-80gb-llama31-8b"

KINDS = (
    Kind("4 x V100, Llama-2-7B", (V100,) * 4, {"baseline": 4.35, "aware": 7.79, "guided": 11.43}),
    Kind("4 x A100, Llama-3.1-8B", (A100,) * 4, {"baseline": 3.15, "aware": 6.74, "guided": 10.71}),
    Kind("4 x A100, Llama-2-7B", (A100_LLAMA2,) * 4, is_quick=False),
    Kind("4 x H100, Llama-3.1-8B", (H100,) * 4, is_quick=False),
    Kind("4 x H100, Llama-2-7B", (H100_LLAMA2,) * 4, is_quick=False),
    Kind("2 x V100 + 2 x A100, Llama-2-7B", (V100, V100, A100_LLAMA2, A100_LLAMA2)),
)

HEURISTICS = ("fewest-outstanding-tokens", "min-min")
POLICIES = (REFERENCE, *HEURISTICS, *LEARNED)

NOTHING: Mapping[str, float] = {}
"""Printed of mean latencies."""

QUANTITIES_SHOWN = (
    "makespan s",
    "mean E2E s",
    "recomputed, % of all tokens",
    "idle servers, % of time",
    "requests at a busy server",
    "most requests of a server, % of an even share",
    "fewest",
)

Found = Mapping[str, Mapping[str, Columns]]
"""By the name of the kind, and by policy."""


def step_ms(profile: str) -> float:
    """Time of a decode step of `BATCH` requests with `CONTEXT` tokens each."""
    return load_profile(profile).step_ms([], [CONTEXT] * BATCH)


def run(context: Context) -> Findings:
    """See `Part.run`."""
    requests = context.requests(REQUESTS, QUICK_REQUESTS)
    kinds = [kind for kind in KINDS if kind.is_quick or not context.quick]
    policies, missing = entrants(context, POLICIES)
    found = {}
    for kind in kinds:
        servers = fleet(kind.profiles, kv_tokens=KV_TOKENS, dt=DT)
        [found[kind.name]] = measure(context, [Setting(kind.name, servers, requests, kind.rate_per_s)], policies)
    command, seeds = context.command(PART.letter), context.seeds_text()
    rates = ", ".join(f"{kind.name}: {kind.rate_per_s:.1f}/s" for kind in kinds)
    return Findings(
        setting=(
            f"Four servers with {KV_TOKENS:,} KV tokens each, prefill-first, {requests:,} five-task requests; the rate "
            f"goes with the speed of a decode step of {BATCH} requests with {CONTEXT} tokens each, {RATE:g}/s on four "
            f"V100: {rates}. All policies are those of part (c), trained on V100; the paper trains anew on each (part "
            "(f) does that for its A100).",
        ),
        tables=(_improvements(kinds, found, command, seeds), _records(found, command, seeds)),
        pictures=(
            Picture(
                f"{PART.letter}-hardware",
                _picture(kinds, found),
                f"Makespan of four servers of different kinds ({seeds}, {requests:,} requests).",
                command,
            ),
        ),
        remarks=(*missing, *_remarks(kinds, found)),
        cuts=_cuts(context, requests),
    )


def _improvements(kinds: list[Kind], found: Found, command: str, seeds: str) -> Table:
    rows = [
        Row(
            f"{kind.name}, {name_of(policy)}",
            tuple(
                improved(own, found[kind.name][REFERENCE], column, printed.get(policy))
                for column, printed in (("makespan_s", kind.printed), ("e2e_mean_s", NOTHING))
            ),
        )
        for kind in kinds
        for policy, own in found[kind.name].items()
        if policy != REFERENCE
    ]
    headings = ("servers, router", "makespan, % below round robin", "mean E2E, % below round robin")
    return Table("Against round robin", headings, tuple(rows), command, seeds)


def _records(found: Found, command: str, seeds: str) -> Table:
    runs = ((f"{kind}, {name_of(policy)}", own) for kind, policies in found.items() for policy, own in policies.items())
    return records("servers, router", runs, command, seeds, quantities=QUANTITIES_SHOWN)


def _remarks(kinds: list[Kind], found: Found) -> tuple[str, ...]:
    remarks = []
    for kind in kinds:
        own = found[kind.name]
        for policy, printed in kind.printed.items():
            if policy in own and improved(own[policy], own[REFERENCE], printed=printed).differs:
                remarks.append(f"{kind.name}: {reason(policy, own[policy], own[REFERENCE], printed)}")
        if len(set(kind.profiles)) > 1:
            best = min((name for name in own if name != REFERENCE), key=lambda name: own[name]["makespan_s"].mean())
            remarks.append(f"{kind.name}: {reason(best, own[best], own[REFERENCE])}")
    return tuple(remarks)


def _picture(kinds: list[Kind], found: Found) -> Figure:
    panels = []
    for kind in kinds:
        own = found[kind.name]
        gains = {name: improvement(own[name]["makespan_s"], own[REFERENCE]["makespan_s"]) for name in own}
        lines = [Dot(name_of(name), gain, kind.printed.get(name)) for name, gain in gains.items() if name != REFERENCE]
        panels.append((kind.name.replace(", ", "\n"), lines))
    return dots(panels, "makespan,\n% below round robin")


def _cuts(context: Context, requests: int) -> tuple[str, ...]:
    cuts = [] if requests == REQUESTS else [f"Cut to {requests:,} of {REQUESTS:,} requests."]
    left_out = [kind.name for kind in KINDS if not kind.is_quick]
    if context.quick:
        cuts.append(f"Short form: left out are {'; '.join(left_out)}.")
    return tuple(cuts)


PART = Part("h", "hardware", "Different hardware", "Section 6.2; other servers and a mixed fleet beyond it", run)
