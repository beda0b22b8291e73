"""What one of several routers knows of an instance: the requests that it sent there itself, one by one.

A single router's counts are kept up with every event (see `EngineState`); here they are added up when they are needed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.cluster.config import ClusterConfig
from jaxroute.cluster.queue import positions
from jaxroute.cluster.slots import true_left
from jaxroute.cluster.state import EngineState
from jaxroute.types import NEVER, Workload


class OwnLoad(struct.PyTreeNode):
    """The requests of one router at one instance.

    Attributes:
      in_flight: [] int32, requests.
      tokens: [] int32, their prompt tokens and the output tokens that their streams have carried.
      awaiting: [] int32, those without a first token.
      awaiting_prompt_tokens: [] int32, their prompt tokens.
      predicted_tokens_left: [] int32, sum of predicted less streamed output tokens, no term below 0.
      least_predicted_left: [] int32, the fewest of a streaming request; 0 where nothing streams.
      awaiting_by_bucket, streaming_by_bucket: [B] int32, by predicted bucket.
    """

    in_flight: jax.Array
    tokens: jax.Array
    awaiting: jax.Array
    awaiting_prompt_tokens: jax.Array
    predicted_tokens_left: jax.Array
    least_predicted_left: jax.Array
    awaiting_by_bucket: jax.Array
    streaming_by_bucket: jax.Array


def own_load(config: ClusterConfig, workload: Workload, router: jax.Array, engine: EngineState) -> OwnLoad:
    """The load of a router at an instance.

    Args:
      config: static sizes.
      workload: the requests.
      router: [] int32, of `config.routers`.
      engine: the instance.
    """
    slots, queue = engine.slots, engine.queue
    request = jnp.concatenate([slots.request, queue.request])
    here = jnp.concatenate([slots.order >= 0, positions(queue) < queue.count])
    own = here & (request % config.routers == router)
    request = jnp.where(own, request, 0)
    running = workload.output_tokens[request[: slots.order.shape[0]]] - true_left(engine)
    streamed = jnp.where(own, jnp.concatenate([running, queue.generated]), 0)
    awaiting = own & (streamed == 0)
    prompt_tokens = workload.prompt_tokens[request]
    left = jnp.maximum(workload.predicted_tokens[request] - streamed, 0)
    least = jnp.min(jnp.where(own & ~awaiting, left, NEVER))
    bucket = workload.predicted_bucket[request]
    is_in = bucket[:, None] == jnp.arange(config.buckets, dtype=jnp.int32)[None, :]

    def total(values: jax.Array, wanted: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(wanted, values, 0), axis=0, dtype=jnp.int32)

    return OwnLoad(
        in_flight=jnp.sum(own, dtype=jnp.int32),
        tokens=total(prompt_tokens + streamed, own),
        awaiting=jnp.sum(awaiting, dtype=jnp.int32),
        awaiting_prompt_tokens=total(prompt_tokens, awaiting),
        predicted_tokens_left=total(left, own),
        least_predicted_left=jnp.where(least == NEVER, 0, least),
        awaiting_by_bucket=total(is_in.astype(jnp.int32), awaiting[:, None]),
        streaming_by_bucket=total(is_in.astype(jnp.int32), (own & ~awaiting)[:, None]),
    )
