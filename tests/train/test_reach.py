"""What evolution may change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from tiny import SCALES, first_weights

from jaxroute.observation import INSTANCE_FEATURES
from jaxroute.policies.network import Scorer
from jaxroute.train.reach import LEAST_STD, LINEAR, WHOLE, reach_of

NETWORK = Scorer((8,))


def test_the_whole_network_moves_by_one_unit_everywhere() -> None:
    policy = first_weights(0, NETWORK)
    reach = reach_of(policy, SCALES, WHOLE)
    assert reach.shape == ravel_pytree(policy)[0].shape
    assert (reach == 1).all()


def test_the_linear_path_moves_alone_and_every_feature_as_far_as_the_one_that_leads() -> None:
    policy = first_weights(0, NETWORK)
    kernel = jnp.zeros_like(policy["params"]["score_linear"]["kernel"]).at[2, 0].set(-20.0).at[4, 0].set(3.0)
    policy["params"]["score_linear"] = {"kernel": kernel}
    std = np.ones(len(INSTANCE_FEATURES), np.float32)
    std[[2, 3, 5]] = 0.5, 4.0, 0.0
    reach = reach_of(policy, SCALES.replace(instance_std=jnp.asarray(std)), LINEAR)
    moved = ravel_pytree(policy)[1](reach)["params"]
    score = np.asarray(moved["score_linear"]["kernel"])[:, 0]
    # The leader's effect is 20 x 0.5; a feature that never moves counts as one that moves a little.
    np.testing.assert_allclose(score[[0, 2, 3, 4, 5]], [10, 20, 2.5, 10, 10 / LEAST_STD])
    assert (np.asarray(moved["hold_linear"]["kernel"])[:2] != 0).all()
    others = [leaf for name, leaf in moved.items() if not name.endswith("_linear")]
    assert others and all((leaf == 0).all() for leaf in jax.tree.leaves(others))
