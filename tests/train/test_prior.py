"""Where policies start: heuristics in the linear path."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.observation import GLOBAL_FEATURES, INSTANCE_FEATURES, Observed
from jaxroute.policies.network import FeatureScales, Scorer
from jaxroute.train.config import NetworkConfig
from jaxroute.train.prior import ADDED, CROWDING, FILL, OVERFULL, PRIORS, with_prior

NETWORK = Scorer((8,))
SCALES = FeatureScales.identity(len(GLOBAL_FEATURES), len(INSTANCE_FEATURES))
HOLD = 3
NAMES = {"added": ADDED, "crowding": CROWDING, "fill": FILL, "overfull": OVERFULL}


def choice(prior: str, **features: list[float]) -> int:
    """What a policy that starts from the prior does with three busy instances; features by constant name."""
    rows = np.zeros((HOLD, len(INSTANCE_FEATURES)), np.float32)
    rows[:, 0] = 0.1
    for name, values in features.items():
        rows[:, INSTANCE_FEATURES.index(NAMES[name])] = values
    observed = Observed(jnp.zeros(len(GLOBAL_FEATURES)), jnp.asarray(rows), jnp.ones(HOLD + 1, bool))
    weights = NETWORK.init(jax.random.key(0), observed, SCALES)
    started = with_prior(weights, NetworkConfig(prior=prior, prior_weight=20.0))
    return int(jnp.argmax(NETWORK.apply(started, observed, SCALES)))


def test_the_marginal_prior_goes_where_the_head_adds_least() -> None:
    assert choice("marginal", added=[0.7, 0.5, 0.6], fill=[0.1, 0.9, 0.5]) == 1
    assert choice("least-tokens", added=[0.7, 0.5, 0.6], fill=[0.1, 0.9, 0.5]) == 0


@pytest.mark.parametrize(("prior", "feature"), [("gate", "fill"), ("marginal-gate", "crowding")])
def test_a_gate_holds_while_every_instance_is_fuller_than_it_allows(prior: str, feature: str) -> None:
    assert choice(prior, **{feature: [0.95, 0.93, 0.99]}) == HOLD
    assert choice(prior, **{feature: [0.95, 0.87, 0.99]}) != HOLD


def test_the_marginal_gate_shuns_a_full_cache_though_it_would_add_least() -> None:
    assert choice("marginal-gate", added=[0.7, 0.5, 0.6], overfull=[0.0, 0.05, 0.0]) == 2
    assert choice("marginal-gate", added=[0.7, 0.5, 0.6], overfull=[0.05] * 3, crowding=[0.5] * 3) == 1


@pytest.mark.parametrize("prior", [name for name, (_, gate) in PRIORS.items() if gate is None])
def test_without_a_gate_it_sends(prior: str) -> None:
    assert choice(prior, fill=[0.99] * 3, crowding=[3.0] * 3) != HOLD


def test_an_unknown_prior_and_one_that_lacks_its_features_are_refused() -> None:
    with pytest.raises(InputError, match=r"network\.prior is 'best'; known: none, "):
        with_prior({}, NetworkConfig(prior="best"))
    weights = {
        "params": {
            name: {"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(1)} for name in ("score_linear", "hold_linear")
        }
    }
    with pytest.raises(InputError, match=r"needs network\.observation = 'rich'"):
        with_prior(weights, NetworkConfig(prior="marginal", observation="paper"))
