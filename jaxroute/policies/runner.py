"""A trained policy in NumPy: what serves it where there is no jax, equal to the Flax network to 1e-5.

Axis letters: I instances, F features of an instance, G features of the router, H units of a hidden layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxroute.observation import Observed, count_columns
from jaxroute.policies.policy_file import STATE, PolicyFile, Scales
from jaxroute.policies.state_layers import StateLayers

MASKED = np.finfo(np.float32).min
"""Logit of an action that is not allowed."""

Layer = tuple[np.ndarray, np.ndarray]
"""Kernel and bias."""


class Runner:
    """Runs one policy.

    Attributes:
      policy: what it runs.
    """

    def __init__(self, policy: PolicyFile) -> None:
        self.policy = policy
        self._network: StateLayers | ScorerLayers
        self._network = StateLayers(policy) if policy.network.form == STATE else ScorerLayers(policy)
        self._count_columns = count_columns(policy.observation, len(policy.bucket_edges))

    def decide(self, observed: Observed) -> int:
        """The action with the highest logit, the first of equals: an instance 0..I-1, or I = hold.

        Args:
          observed: one observation by the policy's own encoding, in NumPy arrays.
        """
        return int(self.logits(observed).argmax())

    def logits(self, observed: Observed) -> np.ndarray:
        """[I + 1] float32, those of masked actions the least finite float32; argument as in `decide`."""
        logits = self._network(observed)
        allowed = observed.mask[:-1]
        logits[~observed.mask] = MASKED
        idle = allowed & ~observed.instances[:, : self._count_columns].any(axis=1)
        if (idle if self.policy.network.holds else allowed).any():
            logits[-1] = MASKED
        return logits.astype(np.float32)


class ScorerLayers:
    """The network of one `Scorer`.

    All that does not depend on the observation is done once. The normalisation is folded into the first layers, which
    are linear in the instance's row and in the fleet's mean, least and most: one product for the fleet, one for the
    rows. Behind them the scores and the hold logit go through each layer together, as I + 1 rows of 2 * H units of
    which the scores use the left half and hold the right one: for so few numbers calls are what costs. In float64,
    where the folding loses nothing.
    """

    def __init__(self, policy: PolicyFile) -> None:
        weights = {name: np.asarray(array, np.float64) for name, array in policy.weights.items()}
        self._by_row, self._by_fleet, self._constant = _first_layers(weights, policy.scales)
        self._behind = list(zip(_layers(weights, "score")[1:], _layers(weights, "hold")[1:], strict=True))
        self._layers: dict[int, list[Layer]] = {}

    def __call__(self, observed: Observed) -> np.ndarray:
        """[I + 1] float64 logits, none of them masked."""
        instances = len(observed.instances)
        rows = observed.instances.astype(np.float64)
        mean = np.add.reduce(rows, axis=0) / instances
        least, most = np.minimum.reduce(rows, axis=0), np.maximum.reduce(rows, axis=0)
        fleet = np.dot(np.concatenate((mean, least, most, observed.router)), self._by_fleet)
        fleet += self._constant
        own = np.dot(rows, self._by_row)
        # The last column is the path around the hidden layers, the last row that of the hold logit.
        units = own.shape[1] - 1
        values = np.zeros((instances + 1, 2 * units))
        np.add(own[:, :units], fleet[:units], out=values[:-1, :units])
        values[-1, units:] = fleet[units:-1]
        for kernel, bias in self._layers_of(instances):
            values = np.dot(np.tanh(values, out=values), kernel)
            values += bias
        logits = np.add.reduce(values, axis=1)
        logits[:-1] += own[:, -1]
        allowed = observed.mask[:-1]
        logits[-1] += fleet[-1] + (logits[:-1][allowed].max() if allowed.any() else 0.0)
        return logits

    def _layers_of(self, instances: int) -> list[Layer]:
        """Kernel [2 * H, 2 * H'] and bias [I + 1, 2 * H'] of each layer behind the first, for `instances` and hold."""
        if instances not in self._layers:
            self._layers[instances] = [_side_by_side(score, hold, instances) for score, hold in self._behind]
        return self._layers[instances]


def _side_by_side(score: Layer, hold: Layer, instances: int) -> Layer:
    """One layer of both parts: see `ScorerLayers`."""
    none = np.zeros_like(score[0])
    kernel = np.block([[score[0], none], [none, hold[0]]])
    nothing = np.zeros_like(score[1])
    bias = [np.concatenate([score[1], nothing])] * instances + [np.concatenate([nothing, hold[1]])]
    return kernel, np.stack(bias)


def _first_layers(weights: Mapping[str, np.ndarray], scales: Scales) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first layers of both parts and the paths around them, as products with what is observed.

    Returns:
      [F, H + 1], for an instance's row: to the score's first layer, and around.
      [3 * F + G, 2 * H + 1], for the fleet's mean, least and most and the router's features: to the score's first
      layer, to that of hold, and around to hold.
      [2 * H + 1], to be added to the latter product.
    """
    score, score_bias = _layers(weights, "score")[0]
    hold, hold_bias = _layers(weights, "hold")[0]
    features = len(scales.instance_mean)
    cuts = [features, 2 * features, 3 * features]
    scale = 1 / scales.instance_std.astype(np.float64)[:, None]
    shift = -scales.instance_mean.astype(np.float64) @ (scale * np.eye(features))
    row, to_mean, to_least, score_router = np.split(score, cuts)
    mean, least, most, hold_router = np.split(hold, cuts)
    # Where a row enters as a difference, what it is shifted by cancels out.
    by_row = scale * (row + to_mean + to_least)
    router = np.concatenate([score_router, hold_router], axis=1) / scales.router_std.astype(np.float64)[:, None]
    constant = np.concatenate([score_bias + shift @ row, hold_bias + shift @ (mean + least + most)])
    constant -= scales.router_mean.astype(np.float64) @ router
    by_fleet = np.block([[-to_mean, mean], [-to_least, least], [0 * most, most]]) * np.tile(scale, (3, 1))
    around = weights["hold_linear/kernel"]
    around_fleet = np.zeros((len(around) + 2 * features, 1))
    around_fleet[features : 2 * features], around_fleet[3 * features :] = around[:features], around[features:]
    return (
        np.concatenate([by_row, weights["score_linear/kernel"]], axis=1),
        np.concatenate([np.concatenate([by_fleet, router]), around_fleet], axis=1),
        np.append(constant, weights["hold_linear/bias"]),
    )


def _layers(weights: Mapping[str, np.ndarray], part: str) -> list[Layer]:
    """Kernels and biases of `score` or `hold`, the output's last."""
    hidden = sum(name.startswith(f"{part}_") and name.endswith("/kernel") for name in weights) - 2
    return [(weights[f"{part}_{layer}/kernel"], weights[f"{part}_{layer}/bias"]) for layer in [*range(hidden), "out"]]
