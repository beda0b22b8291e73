"""The paper's network in NumPy: an MLP over the whole state, equal to the `StateScorer` to 1e-5.

Axis letters: I instances, F features of an instance, G features of the router.
"""

from __future__ import annotations

import numpy as np

from jaxroute.observation import Observed
from jaxroute.policies.policy_file import PolicyFile


class StateLayers:
    """The layers of one policy; the normalisation is folded into the first, in float64, where that loses nothing."""

    def __init__(self, policy: PolicyFile) -> None:
        count = len(policy.network.hidden)
        names = [f"state_{number}" for number in range(count)] + ["state_out"]
        layers = [
            (policy.weights[f"{name}/kernel"].astype(np.float64), policy.weights[f"{name}/bias"].astype(np.float64))
            for name in names
        ]
        scales, self._instances = policy.scales, policy.network.instances
        mean = np.concatenate([scales.router_mean, np.tile(scales.instance_mean, self._instances)]).astype(np.float64)
        std = np.concatenate([scales.router_std, np.tile(scales.instance_std, self._instances)]).astype(np.float64)
        kernel, bias = layers[0]
        kernel = kernel / std[:, None]
        self._layers = [(kernel, bias - mean @ kernel), *layers[1:]]

    def __call__(self, observed: Observed) -> np.ndarray:
        """[I + 1] float64 logits, none of them masked.

        Raises:
          ValueError: another number of instances than the network has inputs for.
        """
        if len(observed.instances) != self._instances:
            raise ValueError(f"the policy serves {self._instances} instances, not {len(observed.instances)}")
        values = np.concatenate((observed.router, observed.instances.ravel())).astype(np.float64)
        for kernel, bias in self._layers[:-1]:
            values = np.maximum(values @ kernel + bias, 0)
        kernel, bias = self._layers[-1]
        return values @ kernel + bias
