"""Where a policy sends a request, or that it holds it, by how full a server is and how long the prompt is.

The views are made up: one server is filled to a varied degree, all others alike to a fixed one, every request in
flight decodes and none waits.

Axis letters: X degrees of filling, Y prompt lengths.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.candidates import Candidate
from jaxroute.errors import InputError
from jaxroute.length_edges import bucket_of
from jaxroute.simulate import Fleet
from jaxroute.types import ClusterParams, RouterView
from jaxroute.workload.prediction import DEFAULT_EDGES

VARIED, ANOTHER, HOLD = 0, 1, 2
"""What a policy does: send to the server whose filling is varied, to another one, or hold."""

FILLINGS, LENGTHS = 121, 80
SHORTEST_PROMPT = 10
HEAD_WAIT_S, SCRAPE_AGE_S = 0.1, 0.05
SENT_BEFORE = 1000
"""Requests for each server; the same in all views, since some policies count them."""


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the made-up views have in common.

    Attributes:
      others: share of the KV cache that is filled at the servers that are not varied.
      output_tokens: predicted output of the request that is to be sent.
      context_tokens: prompt and output tokens so far of each request in flight.
      queue_length: requests at the router.
    """

    others: float
    output_tokens: int = 150
    context_tokens: int = 200
    queue_length: int = 1


@dataclasses.dataclass(frozen=True)
class Surface:
    """The decisions of one policy in one scene.

    Attributes:
      policy: its name.
      scene: what the views have in common.
      filling: [X] float64, share of the varied server's KV cache that is filled.
      prompt_tokens: [Y] int64.
      action: [Y, X] int64: `VARIED`, `ANOTHER` or `HOLD`.
    """

    policy: str
    scene: Scene
    filling: np.ndarray
    prompt_tokens: np.ndarray
    action: np.ndarray


def policy_surface(candidate: Candidate, fleet: Fleet, scene: Scene) -> Surface:
    """Asks a policy about every point; one with a state of its own is asked in its initial one.

    Args:
      candidate: the policy.
      fleet: at least two servers of one profile; the first one is varied.
      scene: see `Scene`.

    Raises:
      InputError: a fleet or a scene that has no such views.
    """
    profile, instances = fleet.profiles[0], len(fleet.profiles)
    if instances < 2 or any(each != profile for each in fleet.profiles):
        raise InputError("a policy surface needs two or more servers of one profile")
    if not 0 <= scene.others <= 1:
        raise InputError(f"others is {scene.others}, must be a share of the KV cache from 0 to 1")
    own = candidate.fleet(fleet)
    filling = np.linspace(0, 1, FILLINGS)
    longest = min(profile.kv_tokens, profile.max_model_len) - scene.output_tokens
    if longest <= SHORTEST_PROMPT:
        raise InputError(f"prompts with {scene.output_tokens} output tokens do not fit the servers; lower the latter")
    prompts = np.unique(np.geomspace(SHORTEST_PROMPT, longest, LENGTHS).round().astype(np.int64))
    x, y = np.meshgrid(filling, prompts)
    state = candidate.policy.initial_state(instances)

    def act(share: jax.Array, prompt: jax.Array) -> jax.Array:
        view = _view(own.params(), scene, own.buckets, share, prompt)
        return candidate.policy.act(state, view, jax.random.key(0))[0]

    asked = jax.jit(jax.vmap(act))(jnp.asarray(x.ravel(), jnp.float32), jnp.asarray(y.ravel(), jnp.int32))
    action = np.asarray(asked).reshape(x.shape)
    kinds = np.where(action == 0, VARIED, np.where(action >= instances, HOLD, ANOTHER))
    return Surface(candidate.name, scene, filling, prompts, kinds)


def _view(params: ClusterParams, scene: Scene, buckets: int, share: jax.Array, prompt: jax.Array) -> RouterView:
    """A view in which instance 0 is filled to `share` ([] float32) and the head has `prompt` tokens ([] int32)."""
    servers = params.instances
    instances = servers.kv_blocks.shape[0]
    kv_tokens = servers.kv_blocks * servers.block_size
    filled = jnp.where(jnp.arange(instances) == 0, share, jnp.float32(scene.others))
    tokens = jnp.round(filled * kv_tokens.astype(jnp.float32)).astype(jnp.int32)
    requests = jnp.minimum(-(-tokens // jnp.int32(scene.context_tokens)), servers.max_num_seqs)
    bucket = int(bucket_of(np.asarray([scene.output_tokens]), DEFAULT_EDGES)[0])
    upper = (*DEFAULT_EDGES[1:], 2 * DEFAULT_EDGES[-1])[bucket] - 1
    zeros = jnp.zeros(instances, jnp.int32)
    counts = partial(jnp.zeros, (instances, buckets), jnp.int32)
    left = scene.output_tokens // 2
    return RouterView(
        now=jnp.int32(1000),
        dt=params.dt.seconds,
        queue_length=jnp.int32(scene.queue_length),
        head_prompt_tokens=prompt,
        head_predicted_bucket=jnp.int32(bucket),
        head_predicted_tokens=jnp.int32(scene.output_tokens),
        head_predicted_upper=jnp.int32(max(upper, scene.output_tokens)),
        head_wait=jnp.float32(HEAD_WAIT_S),
        dispatched=jnp.int32(SENT_BEFORE * instances),
        in_flight=requests,
        in_flight_tokens=tokens,
        awaiting_first=zeros,
        awaiting_prompt_tokens=zeros,
        predicted_tokens_left=requests * jnp.int32(left),
        full=jnp.zeros(instances, bool),
        kv_tokens=kv_tokens,
        profile=servers,
        scraped_running=requests,
        scraped_waiting=zeros,
        scraped_kv_usage=filled,
        scraped_age=jnp.float32(SCRAPE_AGE_S),
        least_predicted_left=jnp.where(requests > 0, jnp.int32(left), 0),
        awaiting_by_bucket=counts() if buckets else None,
        streaming_by_bucket=counts().at[:, min(bucket, buckets - 1)].set(requests) if buckets else None,
    )
