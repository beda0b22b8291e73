"""The router's own metrics among those that Ray exports: by the proxy's names, of every process that has a router."""

from __future__ import annotations

import asyncio
import math

from ray.util import metrics

from jaxroute.serve.telemetry import Telemetry

PERIOD_S = 1.0


class RayMetrics:
    """Copies counters, gauges, and of histograms sum and count, to Ray's."""

    def __init__(self, telemetry: Telemetry, deployment: str, application: str) -> None:
        self._telemetry = telemetry
        self._tags = {"deployment": deployment, "application": application}
        self._counters: dict[str, metrics.Counter] = {}
        self._gauges: dict[str, metrics.Gauge] = {}
        self._so_far: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    async def export_ever_after(self) -> None:
        """Copies them every second."""
        while True:
            self.export()
            await asyncio.sleep(PERIOD_S)

    def export(self) -> None:
        """Copies them now."""
        for family in self._telemetry.registry.collect():
            for sample in family.samples:
                counts = sample.name.endswith(("_total", "_count", "_sum"))
                if sample.name.endswith(("_bucket", "_created")) or not math.isfinite(sample.value):
                    continue
                if counts and family.type != "gauge":
                    self._count(sample.name, sample.labels, sample.value)
                else:
                    gauge = self._gauges.get(sample.name) or self._gauges.setdefault(
                        sample.name, metrics.Gauge(sample.name, family.documentation, self._keys(sample.labels))
                    )
                    gauge.set(sample.value, self._tags | sample.labels)

    def _count(self, name: str, labels: dict[str, str], value: float) -> None:
        """A counter of Ray's is told by how much it has grown."""
        key = name, tuple(sorted(labels.items()))
        more, self._so_far[key] = value - self._so_far.get(key, 0.0), value
        if more > 0:
            counter = self._counters.get(name) or self._counters.setdefault(
                name, metrics.Counter(name, f"As {name} of jaxroute serve.", self._keys(labels))
            )
            counter.inc(more, self._tags | labels)

    def _keys(self, labels: dict[str, str]) -> tuple[str, ...]:
        return (*self._tags, *labels)
