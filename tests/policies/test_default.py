"""The policy that ships."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest

from jaxroute.candidates import DEFAULT_FOLDER, candidate
from jaxroute.metrics import summarise
from jaxroute.policies import heuristic
from jaxroute.policies.folder import read_policy
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.train.load_config import load_config, shipped_configs
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

V100 = load_profile("v100-32gb-llama2-7b")


def runs(instances: int, requests: int, rate: float, *, kv_tokens: int, scheduler: str = "prefill-first"):
    """Summaries of the default policy and of round robin."""
    fleet = Fleet((V100.with_kv_tokens(kv_tokens),) * instances, (scheduler,) * instances)
    table = five_task(requests, rate, seed=1_000_500)
    lengths = predict(table, "0.8", seed=1_000_500)
    default = candidate("default")
    [own] = simulate(default.fleet(fleet), table, lengths, [default.policy])
    [other] = simulate(fleet, table, lengths, [heuristic("round-robin")])
    return summarise(own), summarise(other)


def test_it_was_trained_by_the_configuration_that_ships_and_its_log_says_what_its_file_says() -> None:
    assert "default" in shipped_configs()
    assert load_config(str(DEFAULT_FOLDER / "training.toml")) == load_config("default")
    training = read_policy(DEFAULT_FOLDER).training
    with (DEFAULT_FOLDER / "training.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["valid_e2e_mean"]]
    scores = [float(row["valid_e2e_mean"]) + max(0.0, float(row["valid_e2e_p99"])) for row in rows]
    best = rows[int(np.argmin(scores))]
    assert int(best["update"]) == training["update"]
    assert float(best["valid_e2e_mean"]) < -0.2


@pytest.mark.parametrize("instances", [1, 3, 9])
def test_it_serves_fleets_of_sizes_that_it_was_not_trained_on(instances: int) -> None:
    own, _ = runs(instances, 150, 5.0 * instances, kv_tokens=3800)
    assert own.count == 150
    assert min(own.action_share) > 0


def test_it_beats_round_robin_in_overload_without_a_longer_tail() -> None:
    own, other = runs(4, 1200, 20.0, kv_tokens=3800)
    assert own.e2e_mean_s < 0.65 * other.e2e_mean_s
    assert own.e2e_p99_s < 1.1 * other.e2e_p99_s
    share = np.asarray(own.action_share)
    assert share.max() < 2 * share.min(), "every instance gets its share"


def test_it_does_not_stall_on_requests_that_nearly_fill_the_cache() -> None:
    fleet = Fleet((V100.with_kv_tokens(1024),) * 2, ("chunked", "prefill-first"))
    table = five_task(40, 2.0, seed=1_000_501)
    table = dataclasses.replace(table, prompt_tokens=np.full(40, 900), output_tokens=np.full(40, 60))
    default = candidate("default")
    [run] = simulate(default.fleet(fleet), table, predict(table, "none", seed=0), [default.policy])
    assert summarise(run).count == 40
