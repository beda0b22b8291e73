"""The paper's network: in Flax, in NumPy, in its file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.export import policy_file_of
from jaxroute.observation import Encoding
from jaxroute.policies.folder import digest, read_policy, write_policy
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.policies.network import FeatureScales, StateScorer
from jaxroute.policies.policy_file import PolicyFile
from jaxroute.policies.runner import MASKED, Runner
from trained import BUCKETS, random_observed, random_scales, sizes

INSTANCES = 4


def made_up(encoding: Encoding = "paper", hidden: tuple[int, ...] = (64, 64), *, holds: bool = True) -> PolicyFile:
    router, features = sizes(encoding)
    example = jax.tree.map(jnp.asarray, random_observed(encoding, INSTANCES, 0))
    params = StateScorer(hidden).init(jax.random.key(1), example, FeatureScales.identity(router, features))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), params)
    return policy_file_of(
        name="state",
        params=params,
        scales=random_scales(encoding, 0),
        encoding=encoding,
        buckets=BUCKETS if encoding == "paper" else 0,
        hidden=hidden,
        holds=holds,
        form="state",
        instances=INSTANCES,
        router_order="fcfs",
        ageing=5.0,
        dt=0.02,
        profiles=("v100-32gb-llama2-7b",),
        training={},
    )


@pytest.mark.parametrize("encoding", ["paper", "rich"])
@pytest.mark.parametrize("hidden", [(64, 64), ()])
@pytest.mark.parametrize("holds", [True, False])
def test_numpy_and_flax_agree_on_the_whole_state(encoding: Encoding, hidden: tuple[int, ...], holds: bool) -> None:
    file = made_up(encoding, hidden, holds=holds)
    runner, learned = Runner(file), LearnedPolicy.of(file)
    for seed, allowed in enumerate((1.0, 0.5, 0.0)):
        observed = random_observed(encoding, INSTANCES, seed, allowed=allowed)
        logits = runner.logits(observed)
        expected = np.asarray(learned.logits(jax.tree.map(jnp.asarray, observed)))
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
        assert (logits[~observed.mask] == MASKED).all()
        assert (logits[-1] == MASKED) == (not holds and bool(observed.mask[:-1].any()))


def test_an_idle_instance_that_can_take_the_request_rules_holding_out() -> None:
    observed = random_observed("paper", INSTANCES, 0, allowed=1.0)
    assert Runner(made_up()).logits(observed)[-1] > MASKED
    instances = observed.instances.copy()
    instances[2, : 2 * BUCKETS] = 0
    assert Runner(made_up()).logits(observed._replace(instances=instances))[-1] == MASKED


def test_a_fleet_of_another_size_is_no_input() -> None:
    with pytest.raises(ValueError, match="serves 4 instances, not 3"):
        Runner(made_up()).logits(random_observed("paper", 3, 0))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = made_up()
    write_policy(file, tmp_path / "policy")
    again = read_policy(tmp_path / "policy")
    assert (again.network, digest(again)) == (file.network, digest(file))
    facts = json.loads((tmp_path / "policy" / "policy.json").read_text())["network"]
    assert facts == {"hidden": [64, 64], "holds": True, "activation": "relu", "form": "state", "instances": 4}
    router, features = sizes("paper")
    assert file.parameters == (router + 4 * features + 1) * 64 + 65 * 64 + 65 * 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": "tree"}, "network.form is 'tree'; known: scorer, state"),
        ({"activation": "tanh"}, "network.activation is 'tanh', this version runs relu"),
        ({"instances": 0}, "network.instances is 0, must be at least 1 for a state"),
        ({"instances": 3}, "but the network of policy.json needs float32"),
        ({"form": "scorer", "activation": "tanh"}, "network.instances is 4, must be 0 for a scorer"),
    ],
)
def test_a_network_that_cannot_be_run_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    file = made_up()
    bad = dataclasses.replace(file, network=dataclasses.replace(file.network, **change))
    with pytest.raises(InputError, match=said):
        write_policy(bad, tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []
