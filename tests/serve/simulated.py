"""A simulated fleet, interval by interval, as the proxy of real servers would see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.cluster import fleet as cluster
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.queue import positions
from jaxroute.cluster.router_queue import head_of
from jaxroute.cluster.slots import true_left
from jaxroute.cluster.state import ClusterState, EngineState
from jaxroute.cluster.view import router_view
from jaxroute.simulate import Fleet
from jaxroute.types import ClusterParams, RouterView, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.prediction import Prediction
from jaxroute.workload.table import RequestTable


@dataclasses.dataclass(frozen=True)
class Interval:
    """What happens in one router interval, and the simulator's own view at the start of it.

    Attributes:
      now_s: its start.
      arrived: requests that have reached the router by then.
      view: the simulator's, in NumPy arrays.
      head: request whose turn it is; None in an empty queue.
      action: what is done: an instance, or I to hold.
      streamed: output tokens that each request ([N]) has streamed by the start of the interval.
      scraped: whether the metrics have been read at the start of it.
      preemptions: of all servers so far.
    """

    now_s: float
    arrived: int
    view: RouterView
    head: int | None
    action: int
    streamed: np.ndarray
    scraped: bool
    preemptions: int


def run(
    fleet: Fleet,
    table: RequestTable,
    prediction: Prediction,
    act: Callable[[RouterView], int],
    *,
    most_intervals: int = 5000,
) -> Iterator[Interval]:
    """Runs a fleet until all requests have finished; `act` decides on the simulator's view."""
    config, params = fleet.config(len(table), records=False), fleet.params()
    workload = to_device(table, prediction, dt=fleet.dt, ageing=fleet.ageing, spf_edges=fleet.spf_edges)
    state = cluster.initial_state(config, params, workload)
    period = int(params.scrape_period)
    sent: set[int] = set()
    for turn in range(most_intervals):
        view, head, seen = jax.device_get(_look(config, params, workload, state))
        streamed = seen.copy()
        action = act(view)
        arrived = int(state.arrived)
        waits = int(view.queue_length) > 0
        # What was sent and is no longer there has finished, with all its tokens.
        gone = [request for request in sent if streamed[request] < 0]
        streamed[gone] = table.output_tokens[gone]
        yield Interval(
            now_s=turn * fleet.dt,
            arrived=arrived,
            view=view,
            head=int(head) if waits else None,
            action=action,
            streamed=np.maximum(streamed, 0),
            scraped=turn % period == 0,
            preemptions=int(state.engines.preemptions.sum()),
        )
        if waits and action < len(fleet.profiles):
            sent.add(int(head))
        if len(gone) == len(table):
            return
        state = _step(config, params, workload, state, jnp.int32(action))
    raise AssertionError("the run does not end")


@partial(jax.jit, static_argnames="config")
def _step(
    config: ClusterConfig, params: ClusterParams, workload: Workload, state: ClusterState, action: jax.Array
) -> ClusterState:
    return cluster.step(config, params, workload, state, action)[0]


@partial(jax.jit, static_argnames="config")
def _look(
    config: ClusterConfig, params: ClusterParams, workload: Workload, state: ClusterState
) -> tuple[RouterView, jax.Array, jax.Array]:
    """The view, the head, and the tokens that each request in flight has streamed, -1 for all others."""

    def of_engine(engine: EngineState) -> jax.Array:
        requests = workload.prompt_tokens.shape[0]
        slots, queue = engine.slots, engine.queue
        running = jnp.where(slots.order >= 0, slots.request, requests)
        streamed = jnp.full(requests, -1, jnp.int32)
        left = true_left(engine)
        tokens = workload.output_tokens[jnp.minimum(running, requests - 1)] - left
        streamed = streamed.at[running].set(tokens, mode="drop")
        waiting = jnp.where(positions(queue) < queue.count, queue.request, requests)
        return streamed.at[waiting].set(queue.generated, mode="drop")

    streamed = jnp.max(jax.vmap(of_engine)(state.engines), axis=0)
    return router_view(config, params, workload, state), head_of(workload, state), streamed
