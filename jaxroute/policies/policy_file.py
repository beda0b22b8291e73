"""A trained policy as data, in NumPy: what it sees, its network and weights, and how it came about.

Axis letters: I instances, F features of an instance, G features of the router, H units of a hidden layer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np

from jaxroute.errors import InputError
from jaxroute.observation import Encoding, feature_names

FORMAT_VERSION = 1
"""Of the files that this version writes and reads."""

ACTIONS = "0..I-1: instance for the head of the queue; I: hold"
"""What the network's I + 1 logits stand for."""

SCORER, STATE = "scorer", "state"
"""Forms of a network: the `Scorer`, and the `StateScorer`."""

ACTIVATIONS = {SCORER: "tanh", STATE: "relu"}
"""Of the hidden layers of each form."""

MOST_TOKENS = 2**31
"""Beyond what a request can have."""

ROUTER_ORDERS = ("fcfs", "shortest-predicted")

RETRAIN = "train it again, or use the version of jaxroute that wrote it"


@dataclasses.dataclass(frozen=True, eq=False)
class Scales:
    """What the features are normalised by, (value - mean) / std.

    Attributes:
      router_mean, router_std: [G] float32.
      instance_mean, instance_std: [F] float32.
    """

    router_mean: np.ndarray
    router_std: np.ndarray
    instance_mean: np.ndarray
    instance_std: np.ndarray


@dataclasses.dataclass(frozen=True)
class NetworkShape:
    """The `Scorer` or `StateScorer` that the weights belong to.

    Attributes:
      hidden: units of the hidden layers.
      holds: whether holding is an action that may be chosen while a request can be sent.
      activation: of the hidden layers.
      form: `scorer` or `state`.
      instances: I of the fleets that a `state` serves; 0 for fleets of any size.
    """

    hidden: tuple[int, ...]
    holds: bool
    activation: str = ACTIVATIONS[SCORER]
    form: str = SCORER
    instances: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyFile:
    """A trained policy.

    Attributes:
      name: what the training called it.
      observation: the encoding of the view.
      bucket_edges: lower edges of the B length buckets of the paper's observation, output tokens; else empty.
      router_features: names of the router's G features.
      instance_features: names of an instance's F features.
      scales: of the features.
      network: its shape.
      router_order: order of the router queue that it was trained with.
      ageing: predicted tokens that a second of waiting is worth in the shortest-predicted order.
      dt: router interval that it was trained with, seconds.
      profiles: that it was trained on.
      training: facts about the training, in JSON's types.
      weights: float32 arrays by their path in the linen tree, such as `score_0/kernel`.
      spf_edges: to which that order rounds predicted tokens down, ascending; without any they count as they are.
      actions: what the logits stand for.
      format_version: of the file.
    """

    name: str
    observation: Encoding
    bucket_edges: tuple[int, ...]
    router_features: tuple[str, ...]
    instance_features: tuple[str, ...]
    scales: Scales
    network: NetworkShape
    router_order: str
    ageing: float
    dt: float
    profiles: tuple[str, ...]
    training: Mapping[str, object]
    weights: Mapping[str, np.ndarray]
    spf_edges: tuple[int, ...] = ()
    actions: str = ACTIONS
    format_version: int = FORMAT_VERSION

    @property
    def parameters(self) -> int:
        """Numbers that were trained."""
        return sum(array.size for array in self.weights.values())


def weight_shapes(network: NetworkShape, router_features: int, instance_features: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the network's weights by their path in the linen tree, for G and F features."""
    if network.form == STATE:
        inputs = router_features + network.instances * instance_features
        return _layer_shapes("state", (inputs, *network.hidden, network.instances + 1))
    sizes = (3 * instance_features + router_features, *network.hidden, 1)
    shapes = _layer_shapes("score", sizes) | _layer_shapes("hold", sizes)
    shapes["score_linear/kernel"] = (instance_features, 1)
    shapes["hold_linear/kernel"], shapes["hold_linear/bias"] = (instance_features + router_features, 1), (1,)
    return shapes


def _layer_shapes(part: str, sizes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of the layers between so many units, the last one the output."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers = [f"{part}_{number}" for number in range(len(sizes) - 2)] + [f"{part}_out"]
    for layer, size, units in zip(layers, sizes[:-1], sizes[1:], strict=True):
        shapes[f"{layer}/kernel"], shapes[f"{layer}/bias"] = (size, units), (units,)
    return shapes


def check_policy(policy: PolicyFile, facts: str, weights: str) -> None:
    """Checks that this version can run the policy.

    Args:
      policy: the policy.
      facts: what an error calls the place of everything but the weights.
      weights: what an error calls the place of the weights.

    Raises:
      InputError: names what it cannot run, and the remedy.
    """
    if policy.format_version != FORMAT_VERSION:
        raise InputError(
            f"{facts}: format_version is {policy.format_version!r}, but this version reads {FORMAT_VERSION}; {RETRAIN}"
        )
    _check_features(policy, facts)
    _check_scales(policy.scales, policy, facts)
    _check_network(policy, facts)
    if policy.router_order not in ROUTER_ORDERS:
        raise InputError(f"{facts}: router_order is {policy.router_order!r}; known: {', '.join(ROUTER_ORDERS)}")
    if not (math.isfinite(policy.ageing) and policy.ageing >= 0):
        raise InputError(f"{facts}: ageing is {policy.ageing}, must be a finite number of tokens per second >= 0")
    edges = policy.spf_edges
    if any(later <= earlier for earlier, later in itertools.pairwise((0, *edges, MOST_TOKENS))):
        raise InputError(f"{facts}: spf_edges is {list(edges)}, must be numbers of tokens above 0 that ascend")
    if not (math.isfinite(policy.dt) and policy.dt > 0):
        raise InputError(f"{facts}: dt is {policy.dt}, must be a finite number of seconds > 0")
    _check_weights(policy, weights)


def _check_features(policy: PolicyFile, place: str) -> None:
    if policy.observation not in ("rich", "paper"):
        raise InputError(f"{place}: observation is {policy.observation!r}; known: rich, paper")
    edges = policy.bucket_edges
    if policy.observation == "paper" and not edges:
        raise InputError(f"{place}: the paper's observation counts by bucket: bucket_edges must not be empty")
    if any(later <= earlier for earlier, later in itertools.pairwise(edges)):
        raise InputError(f"{place}: bucket_edges {list(edges)} must ascend")
    known = feature_names(policy.observation, len(edges))
    for field, given, computed in zip(
        ("router_features", "instance_features"), (policy.router_features, policy.instance_features), known, strict=True
    ):
        if given != computed:
            foreign = next((name for name in given if name not in computed), None)
            what = "its names or their order differ from" if foreign is None else f"{foreign!r} is not among"
            raise InputError(f"{place}: {field}: {what} what this version computes; {RETRAIN}")


def _check_scales(scales: Scales, policy: PolicyFile, place: str) -> None:
    for name, values in vars(scales).items():
        size = len(policy.router_features if name.startswith("router") else policy.instance_features)
        if values.shape != (size,):
            raise InputError(f"{place}: scales.{name} has shape {list(values.shape)}, its features need [{size}]")
        if not np.isfinite(values).all():
            raise InputError(f"{place}: scales.{name} holds a number that is not finite; {RETRAIN}")
        if name.endswith("std") and not (values > 0).all():
            raise InputError(f"{place}: scales.{name} holds a number that is not above 0; {RETRAIN}")


def _check_network(policy: PolicyFile, place: str) -> None:
    network = policy.network
    if network.form not in ACTIVATIONS:
        raise InputError(f"{place}: network.form is {network.form!r}; known: {', '.join(ACTIVATIONS)}")
    if network.activation != (runs := ACTIVATIONS[network.form]):
        raise InputError(f"{place}: network.activation is {network.activation!r}, this version runs {runs}")
    if network.instances < 1 if network.form == STATE else network.instances != 0:
        must = "at least 1" if network.form == STATE else "0"
        raise InputError(f"{place}: network.instances is {network.instances}, must be {must} for a {network.form}")
    if any(size < 1 for size in network.hidden):
        raise InputError(f"{place}: network.hidden is {list(network.hidden)}, its sizes must be at least 1")
    if policy.actions != ACTIONS:
        raise InputError(f"{place}: actions is {policy.actions!r}, this version runs {ACTIONS!r}; {RETRAIN}")


def _check_weights(policy: PolicyFile, place: str) -> None:
    shapes = weight_shapes(policy.network, len(policy.router_features), len(policy.instance_features))
    for name in sorted(shapes.keys() ^ policy.weights.keys()):
        what = "is missing" if name in shapes else "is no weight of this network"
        raise InputError(f"{place}: {name} {what}; take both files of a policy from one export")
    for name, shape in shapes.items():
        array = policy.weights[name]
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(
                f"{place}: {name} is {array.dtype} {list(array.shape)}, but the network of policy.json needs float32 "
                f"{list(shape)}; take both files of a policy from one export"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{place}: {name} holds a number that is not finite; train the policy again")
