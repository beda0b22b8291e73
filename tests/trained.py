"""Made-up trained policies and observations for the tests of what runs them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.export import policy_file_of
from jaxroute.observation import Encoding, Observed, feature_names
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.policies.policy_file import PolicyFile

BUCKETS = 7


def sizes(encoding: Encoding) -> tuple[int, int]:
    """G and F."""
    router, instance = feature_names(encoding, BUCKETS)
    return len(router), len(instance)


def random_observed(encoding: Encoding, instances: int, seed: int, *, allowed: float = 0.7) -> Observed:
    rng = np.random.default_rng(seed)
    router, features = sizes(encoding)
    return Observed(
        router=rng.normal(size=router).astype(np.float32),
        instances=rng.normal(size=(instances, features)).astype(np.float32),
        mask=np.append(rng.random(instances) < allowed, True),
    )


def random_scales(encoding: Encoding, seed: int) -> FeatureScales:
    rng = np.random.default_rng(seed)
    router, features = sizes(encoding)
    values = (
        rng.normal(size=router),
        rng.uniform(0.1, 2, router),
        rng.normal(size=features),
        rng.uniform(0.1, 2, features),
    )
    return FeatureScales(*(jnp.asarray(value, jnp.float32) for value in values))


def random_params(encoding: Encoding, hidden: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Of the sizes of a trained network: not near zero anywhere, biases included."""
    example = jax.tree.map(jnp.asarray, random_observed(encoding, 2, 0))
    router, features = sizes(encoding)
    made = Scorer(hidden).init(jax.random.key(seed), example, FeatureScales.identity(router, features))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[0] ** 0.5, jnp.float32), made)


def random_policy(
    encoding: Encoding = "rich", hidden: tuple[int, ...] = (32, 32), seed: int = 0, **changes: object
) -> PolicyFile:
    given: dict[str, Any] = {
        "name": "made-up",
        "params": random_params(encoding, hidden, seed),
        "scales": random_scales(encoding, seed),
        "encoding": encoding,
        "buckets": BUCKETS if encoding == "paper" else 0,
        "hidden": hidden,
        "holds": True,
        "router_order": "fcfs",
        "ageing": 5.0,
        "dt": 0.02,
        "profiles": ("v100-32gb-llama2-7b",),
        "training": {"steps": 1000, "seed": 3},
    }
    return policy_file_of(**{**given, **changes})
