"""What the loop asks of a stage of training, and how a stage is cut into calls and validations."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax

from jaxroute.errors import InputError
from jaxroute.policies.network import FeatureScales
from jaxroute.train.config import TrainConfig
from jaxroute.train.state import Params

VALIDATIONS = 20
"""Of a stage."""

State = Any
"""What a stage carries from one call to the next: a pytree of arrays and typed keys."""


class Candidate(NamedTuple):
    """A policy as it is validated and exported, on the host.

    Attributes:
      policy: the scorer's weights, for the likeliest action.
      scales: of its features.
      seed: of the run that it comes from.
    """

    policy: Params
    scales: FeatureScales
    seed: int


class Stage(Protocol):
    """One algorithm: C updates a call, K runs side by side.

    Attributes:
      name: of the stage, and of its table in the configuration.
      total: updates of the whole stage.
      per_call: C.
    """

    name: str
    total: int
    per_call: int

    def initial(self, before: Candidate | None) -> State:
        """Before the first update, from the best policy of the stages before."""

    def like(self) -> State:
        """The shapes and types of a state."""

    def placed(self, state: State) -> State:
        """The state on the devices."""

    def advance(self, state: State, count: int) -> tuple[State, Any]:
        """`count` updates; the state afterwards and the metrics on the host, a named tuple of [count, K] arrays."""

    def check(self, state: State, metrics: Any, done: int, collapsed: list[int]) -> list[int]:
        """Raises DivergedError where the run has gone wrong; returns for how many updates each run has collapsed."""

    def gain(self, metrics: Any) -> float:
        """How much less the policies cost than what they are compared with, at the end of a call; a share."""

    def candidates(self, state: State) -> list[Candidate]:
        """The policies of the K runs."""

    def env_steps(self, done: int) -> int:
        """Router intervals of one run that `done` updates have simulated."""


def call_length(total: int, wanted: int) -> int:
    """Updates of one call: about `wanted`, and if possible so that all calls are equal, as each length is compiled."""
    wanted = max(1, min(wanted, total))
    near = [count for count in range(max(1, wanted // 2), 2 * wanted + 1) if total % count == 0]
    return min(near, key=lambda count: abs(count - wanted), default=wanted)


def is_validated(before: int, done: int, total: int) -> bool:
    """Whether the state after a call from `before` to `done` updates is validated; the last one always is."""
    every = max(1, total // VALIDATIONS)
    return done == total or done // every > before // every


def devices_for(config: TrainConfig) -> int:
    """As many devices as divide the lanes of every group and the members of a generation.

    Raises:
      InputError: of several processes, some would have nothing to do.
    """
    sizes = [fleets.lanes for fleets in config.fleets]
    if config.evolution.generations:
        sizes.append(2 * config.evolution.pairs)
    everywhere = jax.device_count()
    most = max(count for count in range(1, everywhere + 1) if all(size % count == 0 for size in sizes))
    if jax.process_count() > 1 and most < everywhere:
        raise InputError(
            f"the {jax.process_count()} processes have {everywhere} devices, of which the run could use {most}; make "
            f"fleets.lanes (and twice evolution.pairs, if there is evolution) multiples of {everywhere}"
        )
    return most
