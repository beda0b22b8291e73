"""Loops whose number of rounds differs between the instances and environments of a batch.

`vmap` turns a `while_loop` with a batched condition into one that runs until every lane is done and selects each
leaf of the carry, lane by lane, in every round. Here the body leaves a finished lane as it is, so the selection is
waste: `any_lane` makes the condition one unbatched value and the carry is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

Carry = TypeVar("Carry")


@custom_vmap
def any_lane(flag: jax.Array) -> jax.Array:
    """Whether `flag` ([] bool) holds in any lane of all the enclosing `vmap`s; the same value in every lane."""
    return flag


@any_lane.def_vmap
def _any_lane_batched(axis_size: int, in_batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size, in_batched
    return any_lane(jnp.any(flag, axis=0)), False


def repeat_while(wanted: Callable[[Carry], jax.Array], body: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """Runs `body` until no lane wants more; `body` must leave the lanes that do not as they are."""
    return jax.lax.while_loop(lambda state: any_lane(wanted(state)), body, carry)
