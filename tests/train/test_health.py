from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.train.config import FleetsConfig, PpoConfig, TrainConfig
from jaxroute.train.health import PATIENCE, check_collapse, check_finite, collapsed_for
from jaxroute.train.report import Metrics


def config_of(*instances: int, mixed: float = 0.0) -> TrainConfig:
    return TrainConfig(fleets=tuple(FleetsConfig(instances=each, mixed=mixed) for each in instances))


def metrics_of(*, calls: int = 5, seeds: int = 2, **given: float | np.ndarray) -> Metrics:
    """[C, K] leaves; all zero but for what is given."""
    values = dict.fromkeys(Metrics._fields, 0.0) | {"decisions": 0.5, "busiest": 1.0} | given
    return Metrics(**{name: np.broadcast_to(np.float32(value), (calls, seeds)) for name, value in values.items()})


ZERO = np.zeros(2, np.int64)


def test_finite_numbers_pass() -> None:
    check_finite("ppo", 5, metrics_of(), {"a": np.ones(3)})


def test_what_is_not_finite_is_named_with_a_remedy() -> None:
    with pytest.raises(InputError) as caught:
        check_finite("ppo", 35, metrics_of(value_loss=np.nan, kl=np.inf), {"a": np.ones(3)})
    assert str(caught.value).startswith("training diverged: kl, value_loss not finite by ppo update 35; lower ppo.lear")
    with pytest.raises(InputError, match=r"weights not finite by evolution update 2; lower evolution.learning_rate"):
        check_finite("evolution", 2, metrics_of(), {"a": np.asarray([1, np.nan])})


@pytest.mark.parametrize(("instances", "busiest", "count"), [((4,), 3.1, 5), ((4,), 2.9, 0), ((2,), 1.9, 5)])
def test_updates_count_in_which_one_instance_gets_nearly_all(
    instances: tuple[int, ...], busiest: float, count: int
) -> None:
    assert collapsed_for(config_of(*instances), ZERO, metrics_of(busiest=busiest)).tolist() == [count, count]


def test_a_good_update_starts_the_count_anew_and_each_seed_has_its_own() -> None:
    busiest = np.asarray([[4, 4], [4, 1], [4, 4]], np.float32)
    counts = collapsed_for(config_of(4), np.asarray([7, 7]), metrics_of(calls=3, busiest=busiest))
    assert counts.tolist() == [10, 1]


@pytest.mark.parametrize("config", [config_of(1), config_of(4, mixed=0.5), config_of(4, 1, mixed=1.0)])
def test_single_servers_and_mixed_fleets_do_not_collapse(config: TrainConfig) -> None:
    assert collapsed_for(config, ZERO, metrics_of(busiest=4.0)).tolist() == [0, 0]


def test_shares_of_few_requests_say_nothing() -> None:
    few = 8 * 4 / 512 - 1e-3
    config = dataclasses.replace(config_of(4), ppo=PpoConfig(rollout=512))
    assert collapsed_for(config, ZERO, metrics_of(busiest=4.0, decisions=few)).tolist() == [0, 0]
    assert collapsed_for(config, ZERO, metrics_of(busiest=4.0, hold_share=0.9)).tolist() == [0, 0]
    assert collapsed_for(config, ZERO, metrics_of(busiest=4.0, decisions=few + 2e-3)).tolist() == [5, 5]


def test_a_collapse_that_lasts_stops_the_run() -> None:
    check_collapse(np.asarray([PATIENCE - 1, 0]), 10, 40)
    with pytest.raises(InputError, match=r"by ppo update 40 the policy of seed 11 has sent .* for 20 updates in a row"):
        check_collapse(np.asarray([0, PATIENCE]), 10, 40)
