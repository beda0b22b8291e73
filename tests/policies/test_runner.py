"""The NumPy runner decides as the Flax network does."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.observation import Encoding, Observed
from jaxroute.policies.network import Scorer
from jaxroute.policies.runner import MASKED, Runner
from trained import random_observed, random_params, random_policy, random_scales


def flax_logits(encoding: Encoding, hidden: tuple[int, ...], *, holds: bool, observed: Observed) -> np.ndarray:
    variables, scales = random_params(encoding, hidden, 0), random_scales(encoding, 0)
    return np.asarray(Scorer(hidden, holds).apply(variables, jax.tree.map(jnp.asarray, observed), scales))


@pytest.mark.parametrize("encoding", ["rich", "paper"])
@pytest.mark.parametrize("hidden", [(32, 32), (), (8,), (16, 8, 4)])
@pytest.mark.parametrize("holds", [True, False])
def test_numpy_and_flax_agree(encoding: Encoding, hidden: tuple[int, ...], holds: bool) -> None:
    runner = Runner(random_policy(encoding, hidden, holds=holds))
    for instances in (1, 4, 16):
        for seed, allowed in enumerate((1.0, 0.7, 0.3, 0.0)):
            observed = random_observed(encoding, instances, seed, allowed=allowed)
            logits = runner.logits(observed)
            assert logits.dtype == np.float32
            expected = flax_logits(encoding, hidden, holds=holds, observed=observed)
            np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
            assert runner.decide(observed) == expected.argmax()


def test_masked_actions_have_the_least_logit_and_only_hold_is_left_when_nothing_can_be_sent() -> None:
    for holds in (True, False):
        runner = Runner(random_policy(holds=holds))
        nothing = random_observed("rich", 4, 0, allowed=0.0)
        logits = runner.logits(nothing)
        assert (logits[:4] == MASKED).all()
        assert logits[4] > MASKED
        assert runner.decide(nothing) == 4


def test_a_policy_that_never_holds_sends_whatever_its_hold_logit_says() -> None:
    policy = random_policy()
    wants_hold = {**policy.weights, "hold_linear/bias": np.full(1, 1e3, np.float32)}
    observed = random_observed("rich", 4, 0, allowed=1.0)
    assert Runner(dataclasses.replace(policy, weights=wants_hold)).decide(observed) == 4
    network = dataclasses.replace(policy.network, holds=False)
    assert Runner(dataclasses.replace(policy, weights=wants_hold, network=network)).decide(observed) < 4


@pytest.mark.parametrize("encoding", ["rich", "paper"])
def test_permuted_instances_get_permuted_logits(encoding: Encoding) -> None:
    runner = Runner(random_policy(encoding))
    observed = random_observed(encoding, 16, 0)
    order = np.random.default_rng(1).permutation(16)
    both = np.append(order, 16)
    permuted = observed._replace(instances=observed.instances[order], mask=observed.mask[both])
    np.testing.assert_allclose(runner.logits(permuted), runner.logits(observed)[both], rtol=1e-6, atol=1e-6)


def test_of_equal_instances_the_first_is_taken() -> None:
    observed = random_observed("rich", 4, 0, allowed=1.0)
    alike = observed._replace(instances=np.tile(observed.instances[:1], (4, 1)))
    assert Runner(random_policy(holds=False)).decide(alike) == 0
