"""How long a step takes in which copies take part with weights, and what each copy has to do with it.

Axis letters: M copies.
"""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
from flax import struct

from jaxroute.types import InstanceParams, StepCoefficients


class Marginal(enum.Enum):
    """What the derivative of a step time by a weight is.

    Attributes:
      TANGENT: the derivative of the formula at the weights, 0 where the step time is flat.
      SECANT: the step time with the copy whole less that without it. Between the corners of the weights, where the
        formula is not linear, this is no derivative; at the corners it is what sending the request elsewhere changes.
    """

    TANGENT = "tangent"
    SECANT = "secant"


@dataclasses.dataclass(frozen=True)
class Derivative:
    """What the derivative by the weights takes in; the values are the same with all of them.

    Attributes:
      marginal: of step times.
      waits: whether the waits for a place in the KV cache or among `max_num_seqs` have a derivative: as a function of
        the weights they jump, and this is the slope of the stairs.
    """

    marginal: Marginal = Marginal.SECANT
    waits: bool = True


MOVES = Derivative()
"""What sending requests elsewhere changes."""

PATHWISE = Derivative(Marginal.TANGENT, waits=False)
"""The derivative proper, of a run in which no event changes its place."""


class Sums(struct.PyTreeNode):
    """What a step computes; every leaf [] or [M] float32.

    Attributes:
      prefill: new prompt tokens.
      squares: their squares, request by request.
      times_kv: their products with the tokens already in the cache.
      decodes: decoding sequences.
      context: tokens that they attend to.
      prefills: requests that prefill.
    """

    prefill: jax.Array
    squares: jax.Array
    times_kv: jax.Array
    decodes: jax.Array
    context: jax.Array
    prefills: jax.Array

    def __add__(self, other: Sums) -> Sums:
        return jax.tree.map(jnp.add, self, other)

    def times(self, factor: jax.Array) -> Sums:
        """Every leaf times `factor`."""
        return jax.tree.map(lambda leaf: leaf * factor, self)

    def total(self) -> Sums:
        """[] leaves, the sums over the copies."""
        return jax.tree.map(jnp.sum, self)


class StepTime(struct.PyTreeNode):
    """A step time and its parts.

    Attributes:
      seconds, rest: [] float32, its value, and what float32 rounded off.
      missing: [M] float32 seconds, by how much it would be longer with each copy whole.
    """

    seconds: jax.Array
    rest: jax.Array
    missing: jax.Array


def present(weight: jax.Array) -> jax.Array:
    """How much of something is there whose weights add up to `weight`: all of it from 1 on."""
    return jnp.where(weight < 1, weight, 1)


def whole_sums(prefills: jax.Array, decodes: jax.Array, chunk: jax.Array, kv: jax.Array) -> Sums:
    """[M] leaves, what each copy computes if it is whole.

    Args:
      prefills, decodes: [M] bool, the copies that do so.
      chunk: [M] float32, tokens that they compute.
      kv: [M] float32, tokens in their KV cache before.
    """
    tokens = jnp.where(prefills, chunk, 0)
    return Sums(
        prefill=tokens,
        squares=tokens**2,
        times_kv=tokens * kv,
        decodes=decodes.astype(jnp.float32),
        context=jnp.where(decodes, kv + 1, 0),
        prefills=prefills.astype(jnp.float32),
    )


def step_time(params: InstanceParams, own: Sums, weight: jax.Array, marginal: Marginal) -> StepTime:
    """The step time of `cluster.step_time`, of weighted sums.

    Args:
      params: the instance.
      own: [M] leaves, see `whole_sums`.
      weight: [M] float32.
      marginal: which derivative by the weights it has.
    """
    if marginal is Marginal.TANGENT:
        sums = own.times(weight).total()
        seconds, rest = _seconds(params, sums)
        return StepTime(seconds, rest, _seconds(params, sums + own.times(1 - weight))[0] - seconds)
    fixed = jax.lax.stop_gradient(weight)
    sums = own.times(fixed).total()
    seconds, rest = _seconds(params, sums)
    secant = _seconds(params, sums + own.times(1 - fixed))[0] - _seconds(params, sums + own.times(-fixed))[0]
    return with_secants(StepTime(seconds, rest, jnp.zeros_like(weight)), secant, weight)


def prefill_time(params: InstanceParams, own: Sums, weight: jax.Array, marginal: Marginal) -> StepTime:
    """What the prefill-only step of `own` costs those that decode: its time, as far as it is present.

    `missing` is what a whole copy takes on top of that. Arguments as in `step_time`.
    """

    def cost(sums: Sums) -> tuple[jax.Array, jax.Array]:
        seconds, rest = _seconds(params, sums)
        share = present(jnp.maximum(sums.prefills, 0))
        return share * seconds, share * rest

    if marginal is Marginal.TANGENT:
        sums = own.times(weight).total()
        seconds, rest = cost(sums)
        return StepTime(seconds, rest, cost(sums + own.times(1 - weight))[0] - seconds)
    fixed = jax.lax.stop_gradient(weight)
    sums = own.times(fixed).total()
    seconds, rest = cost(sums)
    secant = cost(sums + own.times(1 - fixed))[0] - cost(sums + own.times(-fixed))[0]
    return with_secants(StepTime(seconds, rest, jnp.zeros_like(weight)), secant, weight)


def with_secants(time: StepTime, secant: jax.Array, weight: jax.Array) -> StepTime:
    """The step time with `secant` ([M] seconds) as its derivative by the weights."""
    secant = jax.lax.stop_gradient(secant)
    tangent = jnp.sum(secant * (weight - jax.lax.stop_gradient(weight)))
    return StepTime(
        seconds=jax.lax.stop_gradient(time.seconds) + tangent,
        rest=jax.lax.stop_gradient(time.rest),
        missing=(1 - weight) * secant,
    )


def _seconds(params: InstanceParams, sums: Sums) -> tuple[jax.Array, jax.Array]:
    tokens = sums.prefill + sums.decodes
    is_flat = params.step.h + params.step.g * tokens <= params.step.W
    return _evaluate(params.step, sums, tokens, is_flat), _evaluate(params.step_rest, sums, tokens, is_flat)


def _evaluate(step: StepCoefficients, sums: Sums, tokens: jax.Array, is_flat: jax.Array) -> jax.Array:
    linear = jnp.where(is_flat, step.W, step.h + step.g * tokens)
    decode = step.d * sums.context + step.e * sums.decodes + step.v * present(sums.decodes)
    prefill = step.f * sums.squares + step.x * sums.times_kv
    return linear + decode + prefill + step.u * present(sums.prefills)
