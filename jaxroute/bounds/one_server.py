"""The relaxed fleet: one server of fluid work that may be interrupted at any time."""

from __future__ import annotations

import dataclasses
import heapq

import numpy as np


@dataclasses.dataclass(frozen=True)
class Served:
    """When N requests were served.

    Attributes:
      finish_s: [N] when the last of the work was done.
      mean_busy_s: [N] mean moment of the work, each bit of it counted alike.
    """

    finish_s: np.ndarray
    mean_busy_s: np.ndarray


def serve(release_s: np.ndarray, work_s: np.ndarray, speed: float, *, by_remaining: bool) -> Served:
    """Serves the request with the least work first, preempting others.

    By the work that remains (SRPT) no schedule has a smaller sum of finish times (Schrage 1968). By the whole work none
    has a smaller sum of mean busy times: a bit of request j weighs 1 / work_j, and moving heavier bits to the front
    never costs (Goemans 1997; Goemans et al., Single machine scheduling with release dates, SIAM J. Discrete Math.
    15, 2002). Sharing the server among several requests at a time does not help either.

    Args:
      release_s: [N] earliest start, seconds.
      work_s: [N] above 0, seconds at speed 1.
      speed: work done per second.
      by_remaining: SRPT, else by the whole work.
    """
    order = np.argsort(release_s, kind="stable")
    left = np.asarray(work_s, np.float64).copy()
    finish, moment = np.zeros(len(left)), np.zeros(len(left))
    ready: list[tuple[float, int]] = []
    now, upcoming = 0.0, 0
    while upcoming < len(order) or ready:
        if not ready:
            now = max(now, float(release_s[order[upcoming]]))
        while upcoming < len(order) and release_s[order[upcoming]] <= now:
            request = int(order[upcoming])
            heapq.heappush(ready, (float(left[request]), request))
            upcoming += 1
        key, request = heapq.heappop(ready)
        until = float(release_s[order[upcoming]]) if upcoming < len(order) else np.inf
        end = now + float(left[request]) / speed
        span = min(end, until) - now
        moment[request] += span * speed * (now + span / 2)
        if end <= until:
            finish[request], now = end, end
            continue
        left[request] -= span * speed
        now = until
        heapq.heappush(ready, (float(left[request]) if by_remaining else key, request))
    return Served(finish, moment / work_s)
