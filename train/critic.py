"""The critic: what the rest of an episode costs, judged with knowledge that the router will not have.

It is used in training only, so it may look at what the policy must not: true output lengths, the engines' insides, and
the requests that are about to arrive. Arrivals do not depend on the router's decisions, so knowing them takes noise out
of the advantages and adds no bias (an input-driven baseline).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxroute.cluster.slots import true_left
from jaxroute.cluster.state import ClusterState, EngineState
from jaxroute.observation import global_features, instance_features
from jaxroute.train.state import Params
from jaxroute.types import NEVER, ClusterParams, RouterView, Workload

LOOK_AHEAD_S = (1.0, 4.0, 16.0, 64.0)
"""Seconds of arrivals that the critic knows."""

LEAST_STEP_S = 1e-3
"""Constant part of a step below which a server is no faster to the critic; a profile may have none."""


class Judged(NamedTuple):
    """What the critic sees.

    Attributes:
      whole: [..., Gc] float32, features of the router, its queue and the arrivals to come.
      instances: [..., I, Fc] float32.
    """

    whole: jax.Array
    instances: jax.Array


class Work(NamedTuple):
    """Running sums over the requests of a workload in the order of arrival.

    Attributes:
      output: [N + 1] float32, true output tokens.
      prompt: [N + 1] float32, prompt tokens.
    """

    output: jax.Array
    prompt: jax.Array


def work_of(workload: Workload) -> Work:
    """The running sums of a workload, padding left out."""
    real = jnp.arange(workload.prompt_tokens.shape[0], dtype=jnp.int32) < workload.num_requests

    def sums(tokens: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.where(real, tokens, 0).astype(jnp.float32))])

    return Work(output=sums(workload.output_tokens), prompt=sums(workload.prompt_tokens))


def judge(
    params: ClusterParams, workload: Workload, work: Work, state: ClusterState, view: RouterView, scale: jax.Array
) -> Judged:
    """What the critic sees of a state.

    Args:
      params: the fleet.
      workload: the requests.
      work: their running sums.
      state: the fleet now.
      view: what the router sees of it.
      scale: [] float32, the unit of the value that is asked for.
    """
    engines, servers = state.engines, params.instances
    capacity = view.kv_tokens.astype(jnp.float32)
    rows = jnp.stack(
        [
            jax.vmap(_tokens_left)(engines) / capacity,
            engines.used_blocks.astype(jnp.float32) / servers.kv_blocks.astype(jnp.float32),
            engines.running.astype(jnp.float32) / servers.max_num_seqs.astype(jnp.float32),
            jnp.log1p(engines.queue.count.astype(jnp.float32)),
            jnp.log(capacity / 10_000),
            1 / (jnp.maximum(servers.step.W, LEAST_STEP_S) * 50),
        ],
        axis=-1,
    )
    total = jnp.sum(capacity)
    queued_output, queued_prompt = _queued_tokens(workload, work, state)
    coming = [_arrivals(workload, work, state, view.dt, seconds) / total for seconds in LOOK_AHEAD_S]
    whole = [
        queued_output / total,
        queued_prompt / total,
        jnp.log(scale),
        jnp.log(jnp.float32(engines.running.shape[0])),
        jnp.log1p((workload.num_requests - state.arrived).astype(jnp.float32)),
        *coming,
    ]
    return Judged(
        whole=jnp.concatenate([global_features(view, jnp), jnp.stack(whole)]),
        instances=jnp.concatenate([instance_features(view, jnp), rows], axis=-1),
    )


class Critic(nn.Module):
    """The value of a state in units of its lane's scale; the instances enter as a set.

    Attributes:
      hidden: sizes of the hidden layers behind the pooled instances.
    """

    hidden: tuple[int, ...] = (64, 64)

    @nn.compact
    def __call__(self, judged: Judged) -> jax.Array:
        """[...] float32."""
        rows = nn.tanh(nn.Dense(self.hidden[0] // 2, name="instance")(_squashed(judged.instances)))
        pooled = [jnp.mean(rows, axis=-2), jnp.max(rows, axis=-2), _squashed(jnp.mean(judged.instances, axis=-2))]
        values = jnp.concatenate([*pooled, _squashed(judged.whole)], axis=-1)
        for number, size in enumerate(self.hidden):
            values = nn.tanh(nn.Dense(size, name=f"whole_{number}")(values))
        return nn.Dense(1, name="value", kernel_init=nn.initializers.orthogonal(0.1))(values)[..., 0]


def value_of(critic: Critic, weights: Params, judged: Judged) -> jax.Array:
    """The critic's values, [...] float32."""
    return cast(jax.Array, critic.apply(weights, judged))


def _squashed(values: jax.Array) -> jax.Array:
    """Backlogs of an overload are a hundred times those of a light load."""
    return jnp.sign(values) * jnp.log1p(jnp.abs(values))


def _tokens_left(engine: EngineState) -> jax.Array:
    """[] float32, true output tokens left of the running requests of one instance."""
    return jnp.sum(jnp.where(engine.slots.order >= 0, true_left(engine), 0), dtype=jnp.int32).astype(jnp.float32)


def _queued_tokens(workload: Workload, work: Work, state: ClusterState) -> tuple[jax.Array, jax.Array]:
    """True output and prompt tokens of the requests at the router, [] float32 each."""
    if state.held is None:
        return (
            work.output[state.arrived] - work.output[state.dispatched],
            work.prompt[state.arrived] - work.prompt[state.dispatched],
        )
    here = state.held != NEVER
    output = jnp.sum(jnp.where(here, workload.output_tokens, 0), dtype=jnp.int32)
    prompt = jnp.sum(jnp.where(here, workload.prompt_tokens, 0), dtype=jnp.int32)
    return output.astype(jnp.float32), prompt.astype(jnp.float32)


def _arrivals(workload: Workload, work: Work, state: ClusterState, dt: jax.Array, seconds: float) -> jax.Array:
    """[] float32, tokens of the requests that arrive within some seconds from now."""
    until = state.now + (seconds / dt).astype(jnp.int32)
    last = jnp.minimum(jnp.searchsorted(workload.visible_step, until, side="right"), workload.num_requests)
    return sum((sums[last] - sums[state.arrived] for sums in work), jnp.float32(0))
