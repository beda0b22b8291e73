"""Routing within Ray Serve: a deployment's router asks the core of `jaxroute serve` which replica takes a call.

Every process that calls the deployment has a router of its own, with a view of its own: what it sent itself, and what
the replicas report of their engines.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Collection
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from jaxroute.errors import InputError
from jaxroute.serve.ray_fleet import Fleet, Outcome, Replica
from jaxroute.serve.ray_metrics import RayMetrics
from jaxroute.serve.ray_options import RayOptions
from jaxroute.serve.ray_report import load_report, vllm_report

LOG = logging.getLogger(__name__)

ROUTER = "jaxroute.serve.ray:JaxrouteRouter"

MOST_ROUTING = 100_000
"""Calls that are being routed at once: one that is held costs no more than its place in the queue."""

IDLE_S = 0.02
"""That one of Ray's routing tasks waits where it has no call to route."""

RESULT_S = 1.0
"""That the word of how a call ended may come later than the word that it ended."""

LOADING_S = 30.0
"""That a replica counts as one that has a multiplexed model, from the first call for it that went there."""


def router_config(*, stats_period_s: float = 0.2, **options: Any) -> RequestRouterConfig:
    """What a deployment's `request_router_config` is to be.

    Everything is loaded once, so that what is wrong shows here, and not in the cluster.

    Args:
      stats_period_s: between two readings of the replicas' load; Ray's own 10 s are too long for any policy.
      options: fields of `RayOptions`.

    Raises:
      InputError: an option that is wrong.
    """
    Fleet(dataclasses.replace(RayOptions.of(options), decision_log=None)).close()
    told: dict[str, Any] = {
        "request_router_class": ROUTER,
        "request_router_kwargs": options,
        "request_routing_stats_period_s": stats_period_s,
        "request_routing_stats_timeout_s": max(1.0, 2 * stats_period_s),
    }
    return RequestRouterConfig(**told)


class JaxrouteRouter(RequestRouter):
    """Chooses replicas, holds calls, and hears from Ray how they end.

    Ray shows no token as it comes, so the progress of calls is estimated. A call is held within `choose_replicas`, in
    the queue of the core: giving Ray no replica would have it come back only after its backoff, up to half a second
    later, and with a few calls at once, in order of arrival. How many may wait, and how long, is Ray's matter
    (`max_queued_requests`, request timeouts).

    Of a multiplexed model, replicas that have it and have room come first, then those with the fewest models. Whether a
    replica is on the caller's node does not count: a hop within a cluster takes a millisecond, a busy engine seconds.
    Nor do sessions.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Loads policy, profile and predictor.

        Where that fails, every call fails with what is wrong, as Ray would have them wait forever.

        Args:
          kwargs: fields of `RayOptions`.
        """
        self._broken: InputError | None = None
        self._metrics: RayMetrics | None = None
        self._by_name: dict[str, RunningReplica] = {}
        self._loading: dict[str, tuple[str, float]] = {}
        self._watched: set[str] = set()
        try:
            self.fleet = Fleet(RayOptions.of(kwargs), may_reject=self._use_replica_queue_len_cache)
        except InputError as error:
            LOG.error("deployment %s cannot be routed: %s", self._deployment_id.name, error)
            self._broken = error

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replica of a call; waits while it is held."""
        if pending_request is None:
            await asyncio.sleep(IDLE_S)
            return [candidate_replicas]
        if self._broken is not None:
            return self._fail(pending_request, self._broken)
        # Or else Ray would come back at once, again and again, where there is no replica.
        pending_request.routing_context.should_backoff = True
        future, id = pending_request.future, pending_request.metadata.internal_request_id
        model = pending_request.metadata.multiplexed_model_id
        # Of a call that only asks for a choice, and goes to the replica by another way, Ray hears nothing any more.
        is_heard_of = id in self._pending_requests_by_id
        args, kwargs = pending_request.args, pending_request.kwargs
        choosing = asyncio.ensure_future(
            self.fleet.choose(id, future, args, kwargs, self._having(model), is_heard_of=is_heard_of)
        )

        def given_up(future: asyncio.Future[Any]) -> None:
            if future.cancelled():
                choosing.cancel()
                self.fleet.withdrawn(id)

        future.add_done_callback(given_up)
        try:
            name = await choosing
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not future.cancelled() or (task is not None and task.cancelling()):
                raise
            return [candidate_replicas]
        except Exception:  # Ray would leave the call waiting forever.
            LOG.exception("a call could not be routed; Ray sends it to the replica with the fewest calls")
            self.fleet.telemetry.fallback.labels("router-error").inc()
            return [candidate_replicas]
        replica = None if name is None else self._by_name.get(name)
        if model and name is not None:
            self._loading.setdefault(model, (name, self._event_loop.time() + LOADING_S))
        return [] if replica is None else [[replica]]

    @property
    def max_num_routing_tasks(self) -> int:
        """Ray has two a replica, and so many calls would be all that the queue's order applies to."""
        return MOST_ROUTING

    @property
    def num_pending_requests(self) -> int:
        """Calls without a replica. Ray's own count has those in it that have one, while an earlier one waits."""
        return len(self._pending_requests_by_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """The replicas, or their stats, have changed."""
        super().update_replicas(replicas)
        self._tell_fleet()
        if self._metrics is None and self._broken is None:
            self._metrics = RayMetrics(self.fleet.telemetry, self._deployment_id.name, self._deployment_id.app_name)
            self._exporting = asyncio.get_running_loop().create_task(self._metrics.export_ever_after())

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica is gone."""
        super().on_replica_actor_died(replica_id)
        self._tell_fleet()

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """A replica cannot be reached just now."""
        super().on_replica_actor_unavailable(replica_id)
        if self._broken is None:
            self.fleet.unavailable(replica_id.unique_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica has accepted a call."""
        if self._broken is not None:
            return
        id, name = pending_request.metadata.internal_request_id, replica_id.unique_id
        loop = self._event_loop
        self.fleet.taken(id)
        self._watched.add(id)

        def ended(how: Any) -> None:
            # From a thread of Ray's.
            loop.call_soon_threadsafe(self._ended, id, name, _outcome(how))

        result.add_done_callback(ended)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call is no longer at a replica; how it ended is told by its result, a moment earlier or later."""
        if self._broken is None:
            wait_s = RESULT_S if internal_request_id in self._watched else 0.0
            ending = functools.partial(self._ended, internal_request_id, replica_id.unique_id, "finished")
            self._event_loop.call_later(wait_s, ending)

    def _ended(self, id: str, name: str, outcome: Outcome) -> None:
        self._watched.discard(id)
        self.fleet.ended(id, name, outcome)

    def _tell_fleet(self) -> None:
        if self._broken is None:
            self._by_name = {id.unique_id: replica for id, replica in self._replicas.items()}
            self.fleet.replace(
                [
                    Replica(name, each.max_ongoing_requests, each.routing_stats or {})
                    for name, each in self._by_name.items()
                ]
            )

    def _fail(self, pending_request: PendingRequest, error: Exception) -> list[list[RunningReplica]]:
        """Ends a call with an error; nothing is left to be routed."""
        if not pending_request.future.done():
            pending_request.future.set_exception(error)
        self._remove_pending_request_from_indices(pending_request)
        return [list(self._replicas.values())]

    def _having(self, model: str) -> Collection[str] | None:
        """Names of the replicas that may take a call for a multiplexed model; None for all."""
        if not model:
            return None
        loading, until = self._loading.get(model, ("", 0.0))
        if until < self._event_loop.time():
            self._loading.pop(model, None)
            loading = ""
        counts = {name: len(each.multiplexed_model_ids) for name, each in self._by_name.items()}
        having = {name for name, each in self._by_name.items() if model in each.multiplexed_model_ids}
        roomy = self.fleet.with_room()
        if found := roomy & (having | {loading}):
            return found
        fewest = min((counts[name] for name in roomy), default=0)
        return {name for name in roomy if counts[name] == fewest} or None


def _outcome(how: Any) -> Outcome:
    """What the result of a call says of how it ended; that the application raised, it mostly does not."""
    cause = getattr(how, "cause", None)
    if isinstance(how, TaskCancelledError) or isinstance(cause, (TaskCancelledError, asyncio.CancelledError)):
        return "aborted"
    # Where Ray sends calls by gRPC, there is the gRPC call.
    cancelled = getattr(how, "cancelled", None)
    if callable(cancelled) and cancelled():
        return "aborted"
    if isinstance(how, (ActorDiedError, ActorUnavailableError)):
        return "replica-died"
    return "error" if isinstance(how, Exception) else "finished"


__all__ = ["ROUTER", "JaxrouteRouter", "load_report", "router_config", "vllm_report"]
