"""A proven lower bound on the mean E2E latency of any router, clairvoyant ones that hold requests included.

With what `demand` proves of single requests and servers:

**Alone.** A request is dispatched at a multiple of dt, not before it arrives, and takes at least `alone_s` on the
server that is fastest for it, and that server's `frontend_s` on top. The mean over the requests is a bound.

**Capacity.** Any schedule of the fleet can be run on one *relaxed server*. Give server m a speed s_m > 0, and let the
relaxed server have the speed S = sum s_m. A request needs w = min over m of s_m * work_m of it. At every moment let
the relaxed server do s_m times the work that server m does, scaled down to w in all: by point 4 the servers' work adds
up to no more than their time, so the relaxed server is at no moment busier than S; and each request's work is done
between its dispatch and its last token. So the sum of finish times is at least the least one that the relaxed server
can have when it may preempt at will, which is that of SRPT. (That it serves one request as fast as all of them is what
makes it relaxed.)

**Capacity and tail.** Let M_j be the mean moment of request j's work on the relaxed server. On its real server, what it
has done of its portions by then is still `tail_s` away from the last token on average, the later portions needing their
time alone. So its finish is at least M_j + min over m of (tail_m + frontend_m), and sum M_j is at least that of the
relaxed server that takes the least work first. This holds for the work of any first portions: fewer of them mean less
waiting but a longer tail, and the best of a few is taken.

The bound is the greatest of the three. It is weak where the fleet is about saturated: no router is told how to
reach it, and how far it is below the best possible one is not known.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.bounds.demand import PREFIXES, Demand, demand, sharings
from jaxroute.bounds.one_server import serve
from jaxroute.simulate import Fleet
from jaxroute.workload.device import arrival_steps
from jaxroute.workload.table import RequestTable

SAMPLE = 100
"""Requests by which the way of sharing is chosen; every way gives a valid bound."""


@dataclasses.dataclass(frozen=True)
class LowerBound:
    """Lower bounds on the mean E2E latency, seconds.

    Attributes:
      alone_s: each request by itself on the fastest server.
      capacity_s: of the relaxed server's SRPT schedule.
      capacity_and_tail_s: of its least-work schedule, and what a request needs afterwards.
    """

    alone_s: float
    capacity_s: float
    capacity_and_tail_s: float

    @property
    def e2e_mean_s(self) -> float:
        """The greatest of them."""
        return max(self.alone_s, self.capacity_s, self.capacity_and_tail_s)


def lower_bound(table: RequestTable, fleet: Fleet) -> LowerBound:
    """The bound for the requests of a table on a fleet, in float64; see the module."""
    frontend = fleet.frontend_s[:, None]
    demands = _demands(table, fleet)
    release = arrival_steps(table.arrival_s, fleet.dt)[2] * fleet.dt
    held = release - table.arrival_s
    alone = np.min([each.alone_s + own for each, own in zip(demands, frontend, strict=True)], axis=0)
    work, speed = _relaxed(demands)
    finish = serve(release, work[:, 0], speed[0], by_remaining=True).finish_s
    tail = np.min([each.tail_s + own for each, own in zip(demands, frontend, strict=True)], axis=0)
    busy = [
        serve(release, work[:, prefix], speed[prefix], by_remaining=False).mean_busy_s + tail[:, prefix]
        for prefix in range(len(PREFIXES))
    ]
    return LowerBound(
        alone_s=float(np.mean(held + alone)),
        capacity_s=float(np.mean(finish - table.arrival_s) + frontend.min()),
        capacity_and_tail_s=max(float(np.mean(each - table.arrival_s)) for each in busy),
    )


def _demands(table: RequestTable, fleet: Fleet) -> list[Demand]:
    """[I] demands; of each kind of server, with the sharing that finds the most work in a sample."""
    found: dict[tuple[str, str], Demand] = {}
    servers = list(zip(fleet.profiles, fleet.schedulers, strict=True))
    sample = table.take(np.linspace(0, len(table) - 1, min(len(table), SAMPLE)).astype(np.int64))
    for profile, scheduler in servers:
        if (repr(profile), scheduler) not in found:
            work = {each: demand(sample, profile, scheduler, each).work_s[:, 0].sum() for each in sharings()}
            best = max(work, key=lambda each: work[each])
            found[repr(profile), scheduler] = demand(table, profile, scheduler, best)
    return [found[repr(profile), scheduler] for profile, scheduler in servers]


def _relaxed(demands: list[Demand]) -> tuple[np.ndarray, np.ndarray]:
    """Work [N, prefixes] and speed [prefixes] of the relaxed server, the servers as fast as they are on average."""
    speeds = np.stack([1 / each.work_s.mean(axis=0) for each in demands])
    work = np.min([speed * each.work_s for speed, each in zip(speeds, demands, strict=True)], axis=0)
    return work, speeds.sum(axis=0)
