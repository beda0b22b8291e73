"""What a configuration's values must be, beyond their types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxroute.cluster.config import SCHEDULERS, RouterOrder
from jaxroute.errors import InputError
from jaxroute.evaluate import FIRST_SEED
from jaxroute.length_edges import are_edges
from jaxroute.policies import HEURISTICS
from jaxroute.profiles import load_profile
from jaxroute.train.config import (
    DqnConfig,
    EvolutionConfig,
    FleetsConfig,
    GradientConfig,
    NetworkConfig,
    PpoConfig,
    RewardConfig,
    TrainConfig,
    WorkloadsConfig,
)
from jaxroute.train.parse_config import Place
from jaxroute.train.prior import PRIORS
from jaxroute.workload.factory import make_workload, workload_names
from jaxroute.workload.prediction import predict
from jaxroute.workload.table import RequestTable

Rule = Callable[[Any], str | None]
"""Says what a value must be where it is not, else nothing."""


def check_config(config: TrainConfig, place: Place) -> None:
    """Checks every value, and those that must fit each other.

    Args:
      config: the configuration.
      place: names where a value comes from.

    Raises:
      InputError: names the place, the value and what it must be.
    """
    tables: list[tuple[str, object]] = [(f"fleets.{number}.", fleets) for number, fleets in enumerate(config.fleets)]
    tables += [("workloads.", config.workloads), ("network.", config.network), ("reward.", config.reward)]
    tables += [("ppo.", config.ppo), ("gradient.", config.gradient), ("evolution.", config.evolution)]
    tables += [("dqn.", config.dqn), ("", config)]
    for prefix, table in tables:
        for name, rule in RULES[type(table)].items():
            if complaint := rule(getattr(table, name)):
                raise InputError(f"{place.of(prefix + name)} is {_shown(getattr(table, name))}, {complaint}")
    if config.ppo.rollout % config.ppo.minibatches:
        _refuse(place, "ppo.rollout", config.ppo.rollout, f"a multiple of ppo.minibatches = {config.ppo.minibatches}")
    if not any(
        (config.ppo.total_steps, config.gradient.total_steps, config.evolution.generations, config.dqn.total_steps)
    ):
        must = "above 0, or gradient.total_steps or evolution.generations or dqn.total_steps: there is nothing to train"
        _refuse(place, "ppo.total_steps", 0, must)
    if config.gradient.total_steps:
        _check_gradient(config, place)
    if config.dqn.total_steps:
        _check_dqn(config, place)
    elif config.network.form != "scorer":
        _refuse(place, "network.form", config.network.form, "scorer without dqn.total_steps")
    if config.seed + config.seeds > FIRST_SEED:
        _refuse(place, "seed", config.seed, f"at most {FIRST_SEED - config.seeds}: evaluation has the seeds above")
    if config.reward.kind == "mixing":
        _check_mixing(config, place)
    if config.network.observation == "paper" and config.network.prior != "none":
        _refuse(place, "network.prior", config.network.prior, "none with the paper's observation")


def _check_mixing(config: TrainConfig, place: Place) -> None:
    """That the mixing penalty alone says something."""
    if config.reward.guidance == "none":
        _refuse(place, "reward.guidance", "none", "constant or decaying with reward.kind = mixing")
    if config.network.holds:
        _refuse(place, "network.holds", True, "false with reward.kind = mixing: who holds is never penalised")


def _check_gradient(config: TrainConfig, place: Place) -> None:
    """What the relaxed fleet can represent."""
    if config.network.holds:
        _refuse(place, "network.holds", True, "false with gradient.total_steps: holding has no gradient")
    if config.network.observation != "rich":
        _refuse(place, "network.observation", config.network.observation, "rich with gradient.total_steps")
    if config.reward.kind != "latency":
        _refuse(place, "reward.kind", config.reward.kind, "latency with gradient.total_steps: it is what is derived")
    for number, fleets in enumerate(config.fleets):
        if fleets.router_order != "fcfs":
            _refuse(place, f"fleets.{number}.router_order", fleets.router_order, "fcfs with gradient.total_steps")
        if fleets.routers > 1:
            _refuse(place, f"fleets.{number}.routers", fleets.routers, "1 with gradient.total_steps")


def _check_dqn(config: TrainConfig, place: Place) -> None:
    """What Q-learning can train, and sizes that fit each other."""
    own, lanes = config.dqn, sum(fleets.lanes for fleets in config.fleets)
    others = {"ppo.total_steps": config.ppo.total_steps, "gradient.total_steps": config.gradient.total_steps}
    for key, size in (others | {"evolution.generations": config.evolution.generations}).items():
        if size:
            _refuse(place, key, size, "0 with dqn.total_steps: Q values are no start for the others, nor theirs for it")
    for number, fleets in enumerate(config.fleets):
        if fleets.routers > 1:
            must = "1 with dqn.total_steps: what follows an action is the next view of the same router"
            _refuse(place, f"fleets.{number}.routers", fleets.routers, must)
    if config.network.form == "state":
        if len({fleets.instances for fleets in config.fleets}) > 1:
            _refuse(place, "network.form", "state", "scorer for fleets of several sizes")
        if config.network.prior != "none":
            _refuse(place, "network.prior", config.network.prior, "none with network.form = state")
    if own.batch % lanes:
        _refuse(place, "dqn.batch", own.batch, f"a multiple of the lanes, {lanes} in all")
    if own.replay < lanes * own.rollout:
        _refuse(place, "dqn.replay", own.replay, f"at least {lanes * own.rollout}: a rollout of every lane")
    if own.steps >= own.rollout:
        _refuse(place, "dqn.steps", own.steps, f"below dqn.rollout = {own.rollout}")


def _refuse(place: Place, key: str, value: object, must: str) -> None:
    raise InputError(f"{place.of(key)} is {value!r}, must be {must}")


def at_least(least: float) -> Rule:
    """Not below `least`."""
    return lambda value: None if value >= least else f"must be at least {least:g}"


def above_zero(value: float) -> str | None:
    """Positive."""
    return None if value > 0 else "must be above 0"


def share(value: float) -> str | None:
    """From 0 to 1."""
    return None if 0 <= value <= 1 else "must be from 0 to 1"


def one_of(names: Iterable[str]) -> Rule:
    """A known name."""
    known = tuple(names)
    return lambda value: None if value in known else f"which is unknown; known: {', '.join(known)}"


def each(rule: Rule) -> Rule:
    """A list that is not empty, and the rule for each of it."""

    def check(values: tuple[Any, ...]) -> str | None:
        if not values:
            return "must not be empty"
        found = ((value, rule(value)) for value in values)
        return next((f"of which {value!r}: {complaint}" for value, complaint in found if complaint), None)

    return check


def none_or(rule: Rule) -> Rule:
    """An empty list, or the rule."""
    return lambda values: rule(values) if values else None


def least_and_most(rule: Rule) -> Rule:
    """Two numbers, the first not above the second, and the rule for both."""

    def check(values: tuple[float, float]) -> str | None:
        return each(rule)(values) or (None if values[0] <= values[1] else "must be the least and then the most")

    return check


def accepted_by(reader: Callable[[Any], object]) -> Rule:
    """What the reader takes without an error; its message says what is known."""

    def check(value: object) -> str | None:
        try:
            reader(value)
        except InputError as error:
            return str(error)
        return None

    return check


def not_empty(value: object) -> str | None:
    """Something in it."""
    return None if value else "must not be empty"


def edges(values: tuple[int, ...]) -> str | None:
    """Ascending and positive; none at all are fine."""
    return None if are_edges(values) else "must be ascending whole numbers above 0, such as [64, 256]"


def requests_of_a_table(value: int) -> str | None:
    """Enough for a rate, or 0."""
    return None if value == 0 or value >= 2 else "must be at least 2, or 0 for the workload's own number"


def _read_workload(name: str) -> None:
    if name not in workload_names():
        make_workload(name, profile=load_profile(FleetsConfig().profiles[0]))


def _read_prediction(model: str) -> None:
    one = np.ones(1)
    predict(RequestTable.create(0 * one, one, one, name="prediction"), model, seed=0)


RULES: Mapping[type, Mapping[str, Rule]] = {
    TrainConfig: {
        "name": not_empty,
        "seed": at_least(0),
        "seeds": at_least(1),
        "fleets": not_empty,
    },
    FleetsConfig: {
        "instances": at_least(1),
        "lanes": at_least(1),
        "router_order": one_of(order.value for order in RouterOrder),
        "profiles": each(accepted_by(load_profile)),
        "schedulers": each(one_of(SCHEDULERS)),
        "mixed": share,
        "kv_tokens": each(at_least(0)),
        "workloads": none_or(each(accepted_by(_read_workload))),
        "ageing": at_least(0),
        "spf_edges": edges,
        "dt": above_zero,
        "routers": at_least(1),
    },
    WorkloadsConfig: {
        "names": each(accepted_by(_read_workload)),
        "requests": requests_of_a_table,
        "tables": at_least(1),
        "loads": least_and_most(above_zero),
        "rate": at_least(0),
        "predictions": each(accepted_by(_read_prediction)),
        "scrape_s": least_and_most(above_zero),
    },
    NetworkConfig: {
        "hidden": each(at_least(1)),
        "critic_hidden": each(at_least(1)),
        "prior": one_of(PRIORS),
        "prior_weight": at_least(0),
    },
    RewardConfig: {"guidance_episodes": at_least(0), "horizon_s": above_zero},
    PpoConfig: {
        "total_steps": at_least(0),
        "rollout": at_least(1),
        "epochs": at_least(1),
        "minibatches": at_least(1),
        "learning_rate": above_zero,
        "final_learning_rate": at_least(0),
        "critic_learning_rate": above_zero,
        "clip": above_zero,
        "entropy": at_least(0),
        "final_entropy": at_least(0),
        "gae_s": above_zero,
        "max_grad_norm": above_zero,
        "twin": one_of(("none", *HEURISTICS)),
        "teacher": one_of(("none", *HEURISTICS)),
        "teacher_weight": at_least(0),
        "teacher_share": share,
    },
    GradientConfig: {
        "total_steps": at_least(0),
        "window": at_least(1),
        "rows": at_least(1),
        "learning_rate": above_zero,
        "final_learning_rate": at_least(0),
        "critic_learning_rate": above_zero,
        "critic_passes": at_least(1),
        "td_s": above_zero,
        "temperature": above_zero,
        "entropy": at_least(0),
        "final_entropy": at_least(0),
        "max_grad_norm": above_zero,
    },
    DqnConfig: {
        "total_steps": at_least(0),
        "rollout": at_least(2),
        "passes": at_least(1),
        "batch": at_least(1),
        "replay": at_least(1),
        "steps": at_least(1),
        "learning_rate": above_zero,
        "final_learning_rate": at_least(0),
        "target_every": at_least(1),
        "max_grad_norm": above_zero,
        "reward_unit": above_zero,
        "exploration": share,
        "exploration_decay": share,
        "exploration_decay_s": above_zero,
        "exploration_episodes": at_least(0),
        "final_exploration": share,
    },
    EvolutionConfig: {
        "generations": at_least(0),
        "pairs": at_least(1),
        "sigma": above_zero,
        "learning_rate": above_zero,
        "tail_weight": at_least(0),
    },
}
"""Of each table; a key that is not here may have any value of its type."""


def _shown(value: object) -> str:
    """A table of tables is not spelled out."""
    return "empty" if value in ((), "") else repr(value)
