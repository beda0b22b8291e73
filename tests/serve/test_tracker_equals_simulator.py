"""What the tracker makes of events is what the simulator says: every field, every feature, at every interval."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simulated import Interval, run

from jaxroute.length_edges import bucket_of
from jaxroute.observation import observe
from jaxroute.profiles import load_profile
from jaxroute.serve.router_queue import Order, RouterQueue, Waiting
from jaxroute.serve.tracker import Tracker
from jaxroute.serve.types import Incoming, Metrics, Server
from jaxroute.simulate import Fleet
from jaxroute.workload import five_task
from jaxroute.workload.prediction import DEFAULT_EDGES, predict

PROFILES = (
    load_profile("v100-32gb-llama2-7b").with_kv_tokens(1300),
    load_profile("a100-80gb-llama2-7b").with_kv_tokens(1500),
    load_profile("v100-16gb-llama2-7b"),
)
ORDER = Order("shortest-predicted", ageing=3.2, spf_edges=(64,))
FLEET = Fleet(
    PROFILES,
    ("chunked", "whole-prompt", "prefill-first"),
    router_order=ORDER.name,
    ageing=ORDER.ageing,
    spf_edges=ORDER.spf_edges,
    scrape_s=0.1,
    buckets=len(DEFAULT_EDGES),
)
SERVERS = [Server(f"server-{number}", profile) for number, profile in enumerate(PROFILES)]
_FULL = five_task(40, rate=25.0, seed=3)
TABLE = _FULL.replace(output_tokens=np.minimum(_FULL.output_tokens, 150))
_PREDICTED = predict(TABLE, "0.8", seed=0)
# As with a length predictor, a bucket is where its tokens fall; that of a bucket without any request does not.
PREDICTION = dataclasses.replace(_PREDICTED, bucket=bucket_of(_PREDICTED.tokens, DEFAULT_EDGES))


class Proxy:
    """Hears of what happens and keeps tracker and queue up to date, as the brain does."""

    def __init__(self, *, streamed: bool = True) -> None:
        self.tracker = Tracker(SERVERS, dt=FLEET.dt, bucket_edges=DEFAULT_EDGES)
        self.queue = RouterQueue(ORDER)
        self._arrived = 0
        self._seen = np.zeros(len(TABLE), int)
        self._sent: set[int] = set()
        self._streamed = streamed

    def hear(self, interval: Interval) -> None:
        for number in range(self._arrived, interval.arrived):
            request = Incoming(
                id=str(number),
                prompt_tokens=int(TABLE.prompt_tokens[number]),
                predicted_tokens=int(PREDICTION.tokens[number]),
                predicted_bucket=int(PREDICTION.bucket[number]),
                predicted_upper=int(PREDICTION.upper[number]),
                arrival_s=float(TABLE.arrival_s[number]),
                streamed=self._streamed,
            )
            self.queue.join(Waiting(request, frozenset(), interval.now_s))
        self._arrived = interval.arrived
        gained = interval.streamed - self._seen
        for number in np.flatnonzero(gained):
            if self._streamed:
                self.tracker.tokens(str(number), int(gained[number]))
            if interval.streamed[number] == TABLE.output_tokens[number]:
                assert self.tracker.end(str(number)) is not None
        self._seen = interval.streamed
        if interval.scraped:
            view = interval.view
            for number, server in enumerate(SERVERS):
                metrics = Metrics(
                    running=int(view.scraped_running[number]),
                    waiting=int(view.scraped_waiting[number]),
                    kv_usage=float(view.scraped_kv_usage[number]),
                )
                self.tracker.scraped(server.name, metrics, interval.now_s)

    def act(self, interval: Interval) -> None:
        head = self.queue.head()
        if head is not None and interval.action < len(SERVERS):
            self.queue.leave(head.request.id)
            self.tracker.dispatch(head.request, SERVERS[interval.action].name, interval.now_s)


def some_action(seed: int):
    """Any instance, or, as often as not, hold."""
    generator = np.random.default_rng(seed)
    return lambda view: int(generator.choice([0, 1, 2, 3], p=[0.3, 0.1, 0.1, 0.5]))


def test_view_and_features_are_the_simulators_at_every_interval() -> None:
    proxy = Proxy()
    traced = jax.jit(lambda view: observe(view, "rich", jnp))
    held, waited, longest, interval = 0, 0, 0, None
    for number, interval in enumerate(run(FLEET, TABLE, PREDICTION, some_action(0))):
        proxy.hear(interval)
        head = proxy.queue.head()
        assert (None if head is None else int(head.request.id)) == interval.head
        mine = proxy.tracker.view(interval.now_s, None if head is None else head.request, len(proxy.queue))
        compare(mine, interval.view)
        for encoding in ("rich", "paper"):
            for own, theirs in zip(observe(mine, encoding, np), observe(interval.view, encoding, np), strict=True):
                assert own.dtype == theirs.dtype
                np.testing.assert_allclose(own, theirs, rtol=2e-6, atol=2e-6)
        if number % 25 == 0:
            # As in training.
            for own, theirs in zip(observe(mine, "rich", np), traced(interval.view), strict=True):
                np.testing.assert_allclose(own, np.asarray(theirs), rtol=1e-4, atol=1e-4)
        proxy.act(interval)
        held += interval.head is not None and interval.action == len(PROFILES)
        waited += int(interval.view.scraped_waiting.max()) > 0
        longest = max(longest, int(interval.view.queue_length))
    # The run had it all: holding, waiting at the servers, preemptions, a queue at the router.
    assert interval.preemptions > 3
    assert min(held, waited) > 10
    assert longest > 5


def compare(mine, theirs) -> None:
    for field in dataclasses.fields(theirs):
        own, value = getattr(mine, field.name), getattr(theirs, field.name)
        if field.name == "profile":
            for name in ("max_num_seqs", "grad1", "grad2"):
                np.testing.assert_array_equal(getattr(own, name), getattr(value, name))
            for name in vars(value.step):
                np.testing.assert_array_equal(getattr(own.step, name), getattr(value.step, name))
        elif field.name in ("head_wait", "scraped_age", "dt"):
            assert float(own) == pytest.approx(float(value), abs=1e-5), field.name
        else:
            np.testing.assert_array_equal(own, value, err_msg=field.name)


def test_estimated_progress_of_requests_that_do_not_stream_is_near_what_they_would_have_streamed() -> None:
    proxy = Proxy(streamed=False)
    mine, theirs = [], []
    for interval in run(FLEET, TABLE, PREDICTION, lambda view: int(np.argmin(view.in_flight))):
        proxy.hear(interval)
        view = proxy.tracker.view(interval.now_s)
        mine.append(view.in_flight_tokens.sum())
        theirs.append(interval.view.in_flight_tokens.sum())
        proxy.act(interval)
    assert np.mean(mine) == pytest.approx(np.mean(theirs), rel=0.1)
    assert np.corrcoef(mine, theirs)[0, 1] > 0.95
