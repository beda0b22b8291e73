"""The main experiment: routers on four V100, 2,000 requests at 20 a second, against round robin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from jaxroute.candidates import Candidate
from jaxroute.paper.compare import (
    LEARNED,
    REFERENCE,
    bound_by_recomputation,
    improved,
    improvement,
    latency_parts,
    mean,
    name_of,
    reason,
    records,
    saved,
)
from jaxroute.paper.measure import KV_TOKENS, V100, Columns, Setting, entrants, fleet, measure
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.pictures import Dot, dots, latency_bars
from jaxroute.paper.variants import VARIANTS
from jaxroute.profiles import load_profile

REQUESTS, RATE = 2000, 20.0

POLICIES = (
    REFERENCE,
    "fewest-outstanding-tokens",
    "join-shortest-queue",
    "min-min",
    "max-capacity",
    *LEARNED,
    "dqn",
)

IMPROVEMENTS = {
    "fewest-outstanding-tokens": 0.46,
    "min-min": 1.50,
    "max-capacity": 2.60,
    "baseline": 4.35,
    "aware": 7.79,
    "guided": 11.43,
    "dqn": 11.43,
}
"""Printed, % below round robin."""

SAVED_S = {"baseline": 7.53, "aware": 13.50, "guided": 19.18, "dqn": 19.18}
ROUTER_WAIT_S = {"baseline": 0.59, "aware": 4.41, "guided": 2.05, "dqn": 2.05}

IMPROVEMENT = "makespan, % shorter"

Found = Mapping[str, Columns]


def setting(requests: int, kv_tokens: int | None = KV_TOKENS) -> Setting:
    """The paper's main run; without `kv_tokens` with the KV cache that the profile has."""
    size = "its own KV cache" if kv_tokens is None else f"{kv_tokens:,} KV tokens"
    return Setting(f"five-task on 4 x V100, {size}", fleet(V100, kv_tokens=kv_tokens), requests, RATE)


def run(context: Context) -> Findings:
    """See `Part.run`."""
    requests = context.requests(REQUESTS)
    policies, missing = entrants(context, POLICIES)
    starved, ample = measure(context, [setting(requests), setting(requests, None)], policies)
    command, seeds = context.command(PART.letter), context.seeds_text()
    own_tokens = load_profile(V100).kv_tokens
    return Findings(
        setting=(
            f"Four {V100}, prefill-first, {requests:,} five-task requests at {RATE:g}/s, Poisson, the router told the "
            f"right length bucket 80 % of the time, one action each 20 ms. The paper does not state the KV cache: "
            f"{KV_TOKENS:,} tokens is where its pressure is (the profile's own {own_tokens:,} are the last table). Its "
            "metric is the time for servicing all requests, the makespan; mean latencies stand beside it.",
        ),
        tables=(
            _improvements(starved, command, seeds),
            records("policy", ((name_of(policy), own) for policy, own in starved.items()), command, seeds),
            _ample(ample, own_tokens, command, seeds),
        ),
        pictures=_pictures(starved, command, f"{seeds}, {requests:,} requests"),
        remarks=(*missing, *_remarks(starved, ample)),
        cuts=_cuts(context, requests),
        commands=_commands(context, policies, requests),
    )


def _improvements(found: Found, command: str, seeds: str) -> Table:
    reference = found[REFERENCE]

    def row(policy: str, own: Columns) -> Row:
        return Row(
            name_of(policy),
            (
                improved(own, reference, printed=IMPROVEMENTS.get(policy)) if policy != REFERENCE else Cell(text="0"),
                saved(own, reference, printed=SAVED_S.get(policy)) if policy != REFERENCE else Cell(text="0"),
                improved(own, reference, "e2e_mean_s") if policy != REFERENCE else Cell(text="0"),
                mean(own, "router_wait_mean_s", ROUTER_WAIT_S.get(policy)),
                mean(own, "makespan_s"),
                mean(own, "e2e_mean_s"),
                mean(own, "e2e_p99_s"),
                mean(own, "ttft_mean_s"),
            ),
            headline=IMPROVEMENT if policy in IMPROVEMENTS else "",
        )

    return Table(
        title="Routers against round robin",
        columns=(
            "router",
            IMPROVEMENT,
            "seconds saved",
            "mean E2E, % lower",
            "router wait s",
            "makespan s",
            "mean E2E s",
            "p99 E2E s",
            "mean TTFT s",
        ),
        rows=tuple(row(policy, own) for policy, own in found.items()),
        command=command,
        seeds=seeds,
        note="The printed numbers of the guided variant stand at both algorithms: the paper's is the Double DQN.",
    )


def _ample(found: Found, tokens: int, command: str, seeds: str) -> Table:
    reference = found[REFERENCE]
    rows = tuple(
        Row(
            name_of(policy),
            (
                improved(own, reference) if policy != REFERENCE else Cell(text="0"),
                improved(own, reference, "e2e_mean_s") if policy != REFERENCE else Cell(text="0"),
                mean(own, "makespan_s"),
                mean(own, "e2e_mean_s"),
                mean(own, "preemptions"),
            ),
        )
        for policy, own in found.items()
    )
    return Table(
        f"The same with the profile's own KV cache of {tokens:,} tokens",
        ("router", IMPROVEMENT, "mean E2E, % lower", "makespan s", "mean E2E s", "preemptions"),
        rows,
        command,
        seeds,
    )


def _pictures(found: Found, command: str, setting_text: str) -> tuple[Picture, ...]:
    reference = found[REFERENCE]
    others = [policy for policy in found if policy != REFERENCE]

    def lines(column: str, printed: Mapping[str, float]) -> list[Dot]:
        gains = {each: improvement(found[each][column], reference[column]) for each in others}
        return [Dot(name_of(each), gain, printed.get(each)) for each, gain in gains.items()]

    panels = [("makespan", lines("makespan_s", IMPROVEMENTS)), ("mean E2E latency", lines("e2e_mean_s", {}))]
    parts = [(name_of(policy), latency_parts(own)) for policy, own in found.items()]
    return (
        Picture(
            f"{PART.letter}-improvement",
            dots(panels, "% below round robin"),
            f"How far routers are below round robin ({setting_text}).",
            command,
        ),
        Picture(
            f"{PART.letter}-where",
            latency_bars(parts),
            f"Where a request's time goes, mean over requests and seeds ({setting_text}).",
            command,
        ),
    )


def _remarks(starved: Found, ample: Found) -> tuple[str, ...]:
    reference = starved[REFERENCE]
    remarks = [bound_by_recomputation(reference)]
    for policy, printed in IMPROVEMENTS.items():
        if policy in starved and improved(starved[policy], reference, printed=printed).differs:
            remarks.append(reason(policy, starved[policy], reference, printed))
    idle, waits = (float(np.mean(ample[REFERENCE][each])) for each in ("idle_share", "instance_wait_mean_s"))
    remarks.append(
        f"With the profile's own cache round robin preempts {float(np.mean(ample[REFERENCE]['preemptions'])):,.0f} "
        f"times, a request waits {1e3 * waits:.0f} ms at its instance, and servers are idle {100 * idle:.0f} % of the "
        "time: there is no queue that a router could order better."
    )
    return tuple(remarks)


def _cuts(context: Context, requests: int) -> tuple[str, ...]:
    cuts = [] if requests == REQUESTS else [f"Cut to {requests:,} of {REQUESTS:,} requests."]
    if context.quick:
        cuts.append(f"Short form: policies are trained for {context.effort.train_steps:,} router intervals.")
    return tuple(cuts)


def _commands(context: Context, policies: Sequence[Candidate], requests: int) -> tuple[str, ...]:
    steps = context.effort.train_steps
    names = [each.name for each in policies]
    training = [VARIANTS[name].command(name, steps) for name in names if name in VARIANTS]
    heuristics = ",".join(name for name in names if name not in VARIANTS)
    return (
        *training,
        f"jaxroute simulate --profile {V100} --kv-tokens {KV_TOKENS} --scheduler prefill-first --workload five-task "
        f"--requests {requests} --rate {RATE:g} --prediction 0.8 --seed {context.first_seed} --policy {heuristics},RUN "
        "--out DIR",
    )


PART = Part("c", "latency", "End-to-end latency against round robin", "Section 6.1, figure 5; slides", run)
