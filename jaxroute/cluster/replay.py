"""One engine under given dispatches, in continuous time: no router, no router interval, a loop over engine steps.

What `fleet.step` does at multiples of dt is done here at any time: a request is dispatched when it was. So the times of
a log need no rounding, and a derivative in a dispatch time is what it says. The engine itself is the same code.

Two derivatives of a latency can be had. The pathwise one holds the order of events: a request joins the same engine
step as before, wherever that has moved to. In an engine that is never idle, that step moves with all that ran before
it, and a slower engine would have let the request wait for longer and longer; in truth it joins an earlier step, and
what it waits for is a part of one step, as before. The *anchored* derivative holds that part: to the request, the step
in which it was dispatched moves along. What separates the two is `EngineRun.drift`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster import clock
from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.engine import engine_step, idle_engine
from jaxroute.cluster.fleet import receive_request
from jaxroute.cluster.lanes import repeat_while
from jaxroute.cluster.state import EngineState
from jaxroute.types import InstanceParams, Interval, Time, Workload


class EngineRun(struct.PyTreeNode):
    """What became of the N requests of one engine.

    Attributes:
      first: Time [N], end of the step that yielded the first token.
      last: Time [N], end of the step that yielded the last one.
      drift: [N] float32, 0, whose derivative is how the engine's clock moves at the time of the dispatch; less it, a
        latency has the anchored derivative.
      preemptions: [] int32.
      steps: [] int32, engine steps that it took.
      complete: [] bool, whether every request finished.
    """

    first: Time
    last: Time
    drift: jax.Array
    preemptions: jax.Array
    steps: jax.Array
    complete: jax.Array


def replay_engine(
    config: ClusterConfig, params: InstanceParams, workload: Workload, dt: Interval, *, most_steps: int
) -> EngineRun:
    """Runs one engine until the last of its requests has finished.

    Forward mode (`jax.jvp`, `jax.jacfwd`) goes through it: in `params` and in the offsets of the dispatches.

    Args:
      config: static sizes, with records.
      params: the engine (every leaf []).
      workload: its requests in the order of their dispatch; `arrival` is the time of that, and nothing else is read of
        it but lengths. Rows from `num_requests` on are padding.
      dt: unit of the clock; it rounds nothing.
      most_steps: engine steps after which a run that does not end is cut off.

    Raises:
      ValueError: a configuration without records.
    """
    if not config.records:
        raise ValueError("a replay needs a configuration with records")
    requests = workload.prompt_tokens.shape[0]
    Carry = tuple[EngineState, Time, jax.Array, jax.Array, jax.Array]

    def wanted(carry: Carry) -> jax.Array:
        engine, steps = carry[0], carry[-1]
        left = (engine.finished < workload.num_requests) & ~engine.stuck & ~engine.overflow
        return left & (steps < most_steps)

    def body(carry: Carry) -> Carry:
        engine, began, drift, received, steps = carry
        runs = wanted(carry)
        ready = clock.select(engine.step.busy, engine.step.end, _dispatch_of(workload, received))
        # An engine that is done has no next event; it is left as it is while other lanes go on.
        ready = ready.replace(step=jnp.where(runs, ready.step, -1))
        busy, before = engine.step.busy, received
        engine, received = _receive_until(config, workload, engine, received, ready)
        joins = busy & (rows >= before) & (rows < received)
        drift = drift + jnp.where(joins, clock.drift(workload.arrival, began, ready, dt), 0)
        engine, _ = engine_step(config, params, workload, engine, ready.step, ready, dt, jnp.int32(0), None)
        return engine, ready, drift, received, steps + runs.astype(jnp.int32)

    rows = jnp.arange(requests, dtype=jnp.int32)
    zero = jnp.int32(0)
    start = (idle_engine(config, requests), clock.at_step(zero), jnp.zeros(requests, jnp.float32), zero, zero)
    engine, _, drift, _, steps = repeat_while(wanted, body, start)
    book = engine.ledger
    if book is None:
        raise ValueError("a replay needs a configuration with records")
    return EngineRun(
        first=book.requests.first,
        last=book.requests.last,
        drift=drift,
        preemptions=engine.preemptions,
        steps=steps,
        complete=engine.finished >= workload.num_requests,
    )


def _receive_until(
    config: ClusterConfig, workload: Workload, engine: EngineState, received: jax.Array, ready: Time
) -> tuple[EngineState, jax.Array]:
    """Lets in what has been dispatched by the time at which the engine schedules."""
    Carry = tuple[EngineState, jax.Array]

    def more(carry: Carry) -> jax.Array:
        dispatch = _dispatch_of(workload, carry[1])
        late = (dispatch.step > ready.step) | ((dispatch.step == ready.step) & (dispatch.offset > ready.offset))
        return (carry[1] < workload.num_requests) & ~late

    def one(carry: Carry) -> Carry:
        engine, received = carry
        wanted = more(carry)
        row = jnp.minimum(received, workload.prompt_tokens.shape[0] - 1)
        return receive_request(config, workload, engine, row, wanted), received + wanted.astype(jnp.int32)

    return repeat_while(more, one, (engine, received))


def _dispatch_of(workload: Workload, row: jax.Array) -> Time:
    row = jnp.minimum(row, workload.prompt_tokens.shape[0] - 1)
    return Time(step=workload.arrival.step[row], offset=workload.arrival.offset[row])
