"""From profiles to the arrays and sizes of a fleet, with every check that can be made before a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxroute.cluster.clock import make_interval
from jaxroute.cluster.config import SCHEDULERS, Batching, ClusterConfig, RouterOrder
from jaxroute.errors import InputError
from jaxroute.profiles import COEFFICIENTS, StepProfile
from jaxroute.types import NEVER, ClusterParams, InstanceParams, StepCoefficients

MOST_STEPS_PER_INTERVAL = 256
DEFAULT_SCRAPE_S = 0.1


def make_params(
    profiles: Sequence[StepProfile],
    schedulers: Sequence[str],
    *,
    dt: float = 0.02,
    scrape_s: float = DEFAULT_SCRAPE_S,
) -> ClusterParams:
    """The parameters of a fleet, one profile and one scheduler name for each of its I instances.

    Args:
      profiles: I profiles.
      schedulers: I names out of `SCHEDULERS`.
      dt: router interval, seconds.
      scrape_s: time between two scrapes of the servers' metrics, seconds, rounded to whole intervals (at least one).

    Raises:
      InputError: an unknown scheduler, or a dt or scrape_s that is not a positive number.
    """
    if len(profiles) == 0 or len(profiles) != len(schedulers):
        raise InputError(f"a fleet needs one scheduler for each profile: {len(profiles)} and {len(schedulers)} given")
    if unknown := sorted(set(schedulers) - set(SCHEDULERS)):
        raise InputError(f"unknown scheduler {unknown[0]!r}; known: {', '.join(SCHEDULERS)}")
    for name, value in (("dt", dt), ("scrape_s", scrape_s)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value!r}, must be a finite number of seconds above 0")
    exact = {name: np.asarray([p.coefficients_ms[name] / 1e3 for p in profiles]) for name in COEFFICIENTS}
    rounded = {name: values.astype(np.float32) for name, values in exact.items()}
    rest = {name: (values - rounded[name]).astype(np.float32) for name, values in exact.items()}
    limits = {
        name: jnp.asarray([getattr(p, name) for p in profiles], jnp.int32)
        for name in ("kv_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens")
    }
    instances = InstanceParams(
        step=StepCoefficients(**{name: jnp.asarray(values) for name, values in rounded.items()}),
        step_rest=StepCoefficients(**{name: jnp.asarray(values) for name, values in rest.items()}),
        **limits,
        frontend_s=jnp.asarray([p.frontend_ms / 1e3 for p in profiles], jnp.float32),
        scheduler=jnp.asarray([int(SCHEDULERS[name]) for name in schedulers], jnp.int32),
        late_after=jnp.full(len(profiles), NEVER, jnp.int32),
        grad1=jnp.asarray([p.grad1 for p in profiles], jnp.float32),
        grad2=jnp.asarray([p.grad2 for p in profiles], jnp.float32),
    )
    return ClusterParams(
        instances=instances, dt=make_interval(dt), scrape_period=jnp.int32(max(1, round(scrape_s / dt)))
    )


def make_config(
    profiles: Sequence[StepProfile],
    *,
    queue_capacity: int,
    dt: float = 0.02,
    batching: str = "fcfs",
    router_order: str = "fcfs",
    records: bool = False,
    slots: int | None = None,
    routers: int = 1,
) -> ClusterConfig:
    """The static sizes that the profiles need.

    Args:
      profiles: of all instances that will ever run under this configuration.
      queue_capacity: Q; a request that is dispatched when an instance already holds Q others overflows.
      dt: router interval, seconds.
      batching: a `Batching` by value.
      router_order: a `RouterOrder` by value.
      records: whether to keep per-request records and the log of engine steps.
      slots: S; by default the largest `max_num_seqs`.
      routers: R, that share no state and take turns, one of them in each interval.

    Raises:
      InputError: no router, unknown batching order, too few slots or places, a dt that a profile cannot honour.
    """
    orders = [order.value for order in Batching]
    if batching not in orders:
        raise InputError(f"unknown batching order {batching!r}; known: {', '.join(orders)}")
    router_orders = [order.value for order in RouterOrder]
    if router_order not in router_orders:
        raise InputError(f"unknown order of the router queue {router_order!r}; known: {', '.join(router_orders)}")
    most_seqs = max(p.max_num_seqs for p in profiles)
    if slots is not None and slots < most_seqs:
        raise InputError(
            f"slots is {slots}, but a profile runs up to max_num_seqs = {most_seqs} sequences; raise slots"
        )
    slots = most_seqs if slots is None else slots
    if routers < 1:
        raise InputError(f"routers is {routers}, must be at least 1")
    if queue_capacity < 1:
        raise InputError(f"queue_capacity is {queue_capacity}, must be at least 1")
    return ClusterConfig(
        slots=slots,
        queue_capacity=queue_capacity,
        phases=max(p.block_size for p in profiles),
        max_steps_per_interval=max(steps_per_interval(p, dt) for p in profiles),
        batching=Batching(batching),
        router_order=RouterOrder(router_order),
        records=records,
        routers=routers,
    )


def steps_per_interval(profile: StepProfile, dt: float) -> int:
    """Engine steps that can end in one half-open interval of `dt` seconds, or start in it, at the most.

    Raises:
      InputError: more than `MOST_STEPS_PER_INTERVAL`: the profile cannot honour this dt.
    """
    # The engine's float32 arithmetic may come out an ulp short, hence the margin.
    count = math.ceil(dt * 1e3 / profile.shortest_step_ms * (1 + 1e-5))
    if count > MOST_STEPS_PER_INTERVAL:
        largest = MOST_STEPS_PER_INTERVAL * profile.shortest_step_ms / 1e3
        raise InputError(
            f"profile {profile.name}: its shortest step is {profile.shortest_step_ms:.3g} ms, so dt = {dt} s could "
            f"hold {count} of them; lower dt to {largest:.2g} s or less, or raise W, h or v"
        )
    return count


def longest_request(profile: StepProfile, scheduler: str) -> int:
    """Prompt + output tokens up to which a request can run to its end whenever it is preempted.

    The last output token needs no place in the KV cache.
    """
    usable = (profile.kv_blocks - _watermark(profile, scheduler)) * profile.block_size
    return 1 + (usable if scheduler == "chunked" else min(usable, profile.max_num_batched_tokens))


def check_requests_fit(
    prompt_tokens: np.ndarray, output_tokens: np.ndarray, profile: StepProfile, scheduler: str, source: str
) -> None:
    """Checks that each request can run to its end on a server that it has to itself.

    Raises:
      InputError: names the first request that never could, the limit in its way, and the remedy.
    """
    capacity = profile.kv_tokens
    admitted = (profile.kv_blocks - _watermark(profile, scheduler)) * profile.block_size
    limits = [
        (prompt_tokens + output_tokens - 1 > capacity, f"the KV cache of {capacity} tokens"),
        (prompt_tokens > admitted, f"the {admitted} tokens of KV cache that the watermark leaves to a prompt"),
    ]
    if scheduler != "chunked":
        budget = profile.max_num_batched_tokens
        limits.append((prompt_tokens > budget, f"one step of max_num_batched_tokens = {budget} for a whole prompt"))
    for bad, limit in limits:
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"{source}: request {row} ({prompt_tokens[row]} prompt + {output_tokens[row]} output tokens) can never "
                f"run on {profile.name}: it exceeds {limit}; use --overlong clip or drop, or raise that limit"
            )


def _watermark(profile: StepProfile, scheduler: str) -> int:
    return profile.kv_blocks // 100 if scheduler == "prefill-first" else 0
