"""Hand-made router views for the tests of policies."""

from __future__ import annotations

import jax.numpy as jnp

from jaxroute.cluster.params import make_params
from jaxroute.profiles import load_profile
from jaxroute.types import RouterView

FIELDS_BY_INSTANCE = (
    "in_flight",
    "in_flight_tokens",
    "awaiting_first",
    "awaiting_prompt_tokens",
    "predicted_tokens_left",
    "scraped_running",
    "scraped_waiting",
    "least_predicted_left",
)


def view(instances: int = 3, **changes: object) -> RouterView:
    """An idle fleet with one request of 100 prompt tokens in the queue, changed as asked (lists become arrays)."""
    profile = load_profile("v100-32gb-llama2-7b")
    params = make_params([profile] * instances, ["chunked"] * instances)
    zeros = jnp.zeros(instances, jnp.int32)
    fields: dict[str, object] = {
        "now": jnp.int32(10),
        "dt": jnp.float32(0.02),
        "queue_length": jnp.int32(1),
        "head_prompt_tokens": jnp.int32(100),
        "head_predicted_bucket": jnp.int32(3),
        "head_predicted_tokens": jnp.int32(90),
        "head_predicted_upper": jnp.int32(127),
        "head_wait": jnp.float32(0.01),
        "dispatched": jnp.int32(0),
        **dict.fromkeys(FIELDS_BY_INSTANCE, zeros),
        "full": jnp.zeros(instances, bool),
        "kv_tokens": jnp.full(instances, 1000, jnp.int32),
        "profile": params.instances,
        "scraped_kv_usage": jnp.zeros(instances, jnp.float32),
        "scraped_age": jnp.float32(0),
        "awaiting_by_bucket": None,
        "streaming_by_bucket": None,
    }
    for name, value in changes.items():
        like = fields[name]
        fields[name] = jnp.asarray(value, jnp.int32 if like is None else like.dtype)  # type: ignore[attr-defined]
    return RouterView(**fields)
