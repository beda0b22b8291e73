"""The router's own Prometheus metrics; no prompt, no key, no client is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from jaxroute.predictor.service import PredictionService
    from jaxroute.serve.backends import Backends
    from jaxroute.serve.types import BackendStatus

DECISION_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
E2E_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Fleet(Protocol):
    """What of the dispatcher the metrics read."""

    @property
    def queue_length(self) -> int:
        """Requests that wait."""

    def status(self) -> list[BackendStatus]:
        """Every backend now."""


class Telemetry:
    """What is counted as it happens.

    Attributes:
      registry: all metrics.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter(
            "requests", "Requests, by backend (none: refused) and HTTP status.", "backend", "code"
        )
        self.decisions = self._counter("decisions", "Placements, by backend and what decided.", "backend", "decided_by")
        self.fallback = self._counter("fallback", "Decisions or predictions that a fallback made, by why.", "reason")
        self.shadow = self._counter("shadow", "What the policy would have done in shadow mode.", "agrees")
        self.retries = self._counter("retries", "Further tries of requests before their first byte, by why.", "reason")
        self.refused = self._counter("refused", "Requests that were not placed, by why.", "reason")
        self.failures = self._counter("backend_failures", "Failures by a backend's fault.", "backend", "reason")
        self.cut = self._counter("streams_cut", "Streams that ended with an error event.", "backend")
        self.aborted = self._counter("client_aborts", "Requests whose client left before the end.")
        self.tokens = self._counter("output_tokens", "Output tokens.", "backend")
        self.decision_s = self._histogram("decision_seconds", "A decision, features included.", DECISION_BUCKETS)
        self.wait_s = self._histogram("router_wait_seconds", "From arrival to dispatch.", WAIT_BUCKETS)
        self.ttft_s = self._histogram("ttft_seconds", "From arrival to the first token.", TTFT_BUCKETS, "backend")
        self.e2e_s = self._histogram("e2e_seconds", "From arrival to the end.", E2E_BUCKETS, "backend")

    def watch(self, fleet: Fleet, backends: Backends, predictions: PredictionService | None) -> None:
        """Adds what is read when somebody asks for the metrics."""
        self.registry.register(_Now(fleet, backends, predictions))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"jaxroute_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"jaxroute_{name}", text, labels, buckets=tuple(buckets), registry=self.registry)


class _Now(Collector):
    """The state of queue and backends at the moment of being asked."""

    def __init__(self, fleet: Fleet, backends: Backends, predictions: PredictionService | None) -> None:
        self._fleet, self._backends, self._predictions = fleet, backends, predictions

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read a state that is not there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics."""
        yield GaugeMetricFamily("jaxroute_queue_length", "Requests waiting at the router.", self._fleet.queue_length)
        status = self._fleet.status()
        for name, text, values in (
            ("backend_open", "Whether it may get requests.", {each.name: float(each.is_open) for each in status}),
            ("in_flight_requests", "Requests there.", {each.name: each.in_flight for each in status}),
            ("in_flight_tokens", "Tokens there.", {each.name: each.in_flight_tokens for each in status}),
            ("outstanding_tokens", "Tokens to do there.", {each.name: each.outstanding_tokens for each in status}),
            ("kv_tokens", "Tokens its KV cache holds.", {each.name: each.kv_tokens for each in status}),
            ("signal_age_seconds", "Since its metrics were read.", {each.name: each.signal_age_s for each in status}),
            ("backend_up", "Whether its health check passes.", {b.name: float(b.health.up) for b in self._backends}),
        ):
            gauge = GaugeMetricFamily(f"jaxroute_{name}", text, labels=["backend"])
            for backend, value in values.items():
                gauge.add_metric([backend], value)
            yield gauge
        states = GaugeMetricFamily("jaxroute_breaker_state", "1 for the breaker's state.", labels=["backend", "state"])
        for each in self._backends:
            states.add_metric([each.name, each.breaker.state], 1)
        yield states
        if self._predictions is not None:
            yield from _predictor(self._predictions)


def _predictor(service: PredictionService) -> Iterator[Metric]:
    counts = service.counts()
    asked = CounterMetricFamily("jaxroute_predictions", "Predictions, by where they are from.", labels=["source"])
    fallbacks = sum(counts.fallbacks.values())
    asked.add_metric(["cache"], counts.cached)
    asked.add_metric(["fallback"], fallbacks)
    asked.add_metric(["network"], max(0, counts.requests - counts.cached - fallbacks))
    yield asked
