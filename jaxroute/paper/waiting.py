"""(e) Where requests wait: at the router, at the model, and in the instances' queues over time."""

from __future__ import annotations

from jaxroute.paper.compare import LEARNED, REFERENCE, name_of
from jaxroute.paper.latency import RATE, REQUESTS, ROUTER_WAIT_S
from jaxroute.paper.part import Cell, Context, Findings, Part, Picture, Row, Table
from jaxroute.paper.pictures import latency_bars
from jaxroute.paper.timelines import MainRun, main_run

PRINTED_MAKESPAN_S = 173.1
"""Of round robin: what 7.53 s and 4.35 % of baseline RL imply."""

PRINTED_WAITING_AXIS = 1.2
"""Where the axis of the paper's figure 5c ends, mean waiting requests at an instance."""

AT_ROUTER = "at the router"

MOST_RUNNING = 128
"""Largest batch of an instance (the paper's appendix A.9)."""


def run(context: Context) -> Findings:
    """Simulates the paper's main run and looks at its queues."""
    found = main_run(context)
    command, seeds = context.command(PART.letter), context.seeds_text()
    return Findings(
        setting=(
            *found.sentences,
            "At the router: from arrival to dispatch. At the model: from dispatch to the engine step that first runs "
            "the request. In the queues, requests that were preempted and wait for room are counted too.",
        ),
        tables=(_waits_table(found, command, seeds), _queues_table(found, command, seeds)),
        pictures=_pictures(found, context, command),
        remarks=remarks(found),
        commands=(found.simulate_command(),),
    )


def _waits_table(found: MainRun, command: str, seeds: str) -> Table:
    rows = []
    for name in found.policies:
        cells = (
            Cell(found.mean(name, "router_wait_s"), ROUTER_WAIT_S.get(name), decimals=2),
            Cell(found.mean(name, "router_wait_p99_s"), decimals=1),
            Cell(found.mean(name, "instance_wait_s"), decimals=2),
            Cell(found.mean(name, "instance_wait_p99_s"), decimals=1),
            Cell(found.mean(name, "service_s"), decimals=2),
            Cell(found.mean(name, "e2e_s"), decimals=2),
        )
        rows.append(Row(name_of(name), cells, headline=AT_ROUTER if name in ROUTER_WAIT_S else ""))
    return Table(
        title="Waiting time of a request, s",
        columns=(
            "router",
            "at the router",
            "p99",
            "at the model",
            "p99 at the model",
            "from then to its end",
            "mean E2E",
        ),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
    )


def _queues_table(found: MainRun, command: str, seeds: str) -> Table:
    rows = []
    for name in found.policies:
        cells = (
            Cell(found.mean(name, "waiting_mean"), decimals=1),
            Cell(found.mean(name, "waiting_max"), decimals=0),
            Cell(found.mean(name, "router_queue_mean"), decimals=1),
            Cell(found.mean(name, "router_queue_max"), decimals=0),
            Cell(found.mean(name, "preemptions"), decimals=0),
            Cell(found.mean(name, "recomputed_share", 100), decimals=1),
        )
        rows.append(Row(name_of(name), cells))
    return Table(
        title="Queues, mean over the run",
        columns=(
            "router",
            "waiting at an instance",
            "most",
            "held at the router",
            "most held",
            "preemptions",
            "recomputed tokens, % of those served",
        ),
        rows=tuple(rows),
        command=command,
        seeds=seeds,
        note=f"The paper prints no numbers; the axis of its figure 5c ends at {PRINTED_WAITING_AXIS:g} requests.",
    )


def _pictures(found: MainRun, context: Context, command: str) -> tuple[Picture, ...]:
    from jaxroute.plots_waiting import queues_picture

    waits = [(name_of(name), _parts(found, name)) for name in found.policies]
    return (
        Picture(
            "e-queues",
            queues_picture({name_of(name): found.runs[name][0] for name in found.policies}),
            f"Requests at the router and at the instances over time, seed {found.seeds[0]:,}.",
            command,
        ),
        Picture("e-waits", latency_bars(waits), f"Where a request spends its time; {context.seeds_text()}.", command),
    )


def _parts(found: MainRun, policy: str) -> tuple[float, float, float]:
    """Mean seconds of a request at the router, in an instance's queue, and from its first step to its end."""
    router, instance, service = (
        float(found.column(policy, name).mean()) for name in ("router_wait_s", "instance_wait_s", "service_s")
    )
    return router, instance, service


def remarks(found: MainRun) -> tuple[str, ...]:
    """What the records say of the printed waits and of the figure of the queues."""
    return tuple(filter(None, (_order(found), _held(found), _trade(found), _axis(found))))


def _order(found: MainRun) -> str:
    known = [name for name in LEARNED if name in found.runs]
    if len(known) < 2:
        return ""
    ours = sorted(known, key=lambda name: found.column(name, "router_wait_s").mean())
    theirs = sorted(known, key=lambda name: ROUTER_WAIT_S[name])
    same = "the same" if ours == theirs else "another"
    return (
        f"Shortest wait at the router first, ours is {', '.join(name_of(name) for name in ours)}; the paper's "
        f"{', '.join(name_of(name) for name in theirs)}: {same} order."
    )


def _held(found: MainRun) -> str:
    """Where the trained policies hold less than the paper's, or more: because the network need not hold to do well."""
    known = [name for name in LEARNED if name in found.runs]
    if not known:
        return ""
    ours = [float(found.column(name, "router_wait_s").mean()) for name in known]
    theirs = [ROUTER_WAIT_S[name] for name in known]
    texts = [
        f"{name_of(name)} {own:.2f} s ({printed:.2f} printed), mean E2E {found.change(name, 'e2e_s').value:+.1f} %"
        for name, own, printed in zip(known, ours, theirs, strict=True)
    ]
    side = "less" if sum(ours) < sum(theirs) else "more"
    return (
        f"Our variants hold {side} than the paper's (mean E2E against round robin): {'; '.join(texts)}. In order of "
        "arrival a request that is held and one that waits at an instance wait for the same tokens to finish, so how "
        "much is held says little of what is gained."
    )


def _trade(found: MainRun) -> str:
    """What a policy that holds more gets for it."""
    texts = []
    for name in found.policies:
        if name != REFERENCE:
            waits = found.column(name, "router_wait_s").mean() + found.column(name, "instance_wait_s").mean()
            base = found.column(REFERENCE, "router_wait_s").mean() + found.column(REFERENCE, "instance_wait_s").mean()
            own, other = (found.column(each, "preemptions").mean() for each in (name, REFERENCE))
            texts.append(f"{name_of(name)} {waits - base:+.1f} s of waiting, {own:,.0f} preemptions for {other:,.0f}")
    if not texts:
        return ""
    return f"Router and instance together, against round robin: {'; '.join(texts)}."


def _axis(found: MainRun) -> str:
    """The figure's axis against what the paper's own numbers imply."""
    instances = len(found.setting.fleet.profiles)
    left = REQUESTS * (1 - REQUESTS / RATE / PRINTED_MAKESPAN_S)
    least = left / instances - MOST_RUNNING
    ours, most = (found.mean(REFERENCE, name).value for name in ("waiting_mean", "waiting_max"))
    return (
        f"Under round robin {ours:.0f} requests wait at an instance on average, {most:.0f} at most; the axis of the "
        f"paper's figure 5c ends at {PRINTED_WAITING_AXIS:g}. The paper's own numbers imply more than that: requests "
        f"cease to arrive after {REQUESTS / RATE:g} s and the last ends after {PRINTED_MAKESPAN_S:g} s, so at an even "
        f"pace {left:,.0f} are left then, {left / instances:.0f} for each of {instances} instances, which run "
        f"{MOST_RUNNING} at most: {least:.0f} must wait at each. So that figure shows something other than a count of "
        "requests, or another run."
    )


PART = Part(
    letter="e",
    name="waiting",
    title="Waiting at the router and at the model",
    paper="section 6.1 and figure 5c",
    run=run,
)
