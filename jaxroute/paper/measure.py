"""Runs policies in a setting, all seeds of all of them in one program, and keeps the numbers of each policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from jaxroute.candidates import Candidate, candidate
from jaxroute.commands.options import smallest_profile
from jaxroute.evaluate import Cell, run_cell
from jaxroute.leaderboard.entrants import fingerprint
from jaxroute.leaderboard.grid import fleet_key
from jaxroute.paper.facts import facts_of
from jaxroute.paper.part import Context, Unavailable
from jaxroute.paper.variants import VARIANTS
from jaxroute.profiles import load_profile
from jaxroute.progress import interval_limit
from jaxroute.simulate import Fleet
from jaxroute.workload.factory import make_workload
from jaxroute.workload.limits import fit_to_context
from jaxroute.workload.table import RequestTable

PREDICTION = "0.8"
"""The paper's predictor names the right bucket 79.15 % of the time (its Table 1)."""

V100, A100, KV_TOKENS = "v100-32gb-llama2-7b", "a100-80gb-llama31-8b", 3800
"""The paper's servers, and the KV cache that puts them under its pressure; the paper states none."""

FACTS = 1
"""Version of `facts_of`; raised when its numbers change, so that kept ones are measured again."""

Columns = Mapping[str, np.ndarray]
"""The numbers of `facts_of` by name, [seeds] each; and `recomputing_s`, busy seconds that recomputed tokens took."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Servers and the requests that come to them.

    Attributes:
      name: for progress and tables.
      fleet: the servers.
      requests: N.
      rate_per_s: mean requests per second, Poisson.
      workload: a generated workload's name.
      prediction: what the router is told of output lengths, see `predict`.
    """

    name: str
    fleet: Fleet
    requests: int
    rate_per_s: float
    workload: str = "five-task"
    prediction: str = PREDICTION

    def table(self, seed: int) -> RequestTable:
        """The requests of a seed; the same as those of `jaxroute simulate --seed`."""
        table = make_workload(
            self.workload,
            profile=smallest_profile(self.fleet),
            requests=self.requests,
            rate=self.rate_per_s,
            seed=seed,
        )
        return fit_to_context(table, min(each.max_model_len for each in self.fleet.profiles), "error")[0]

    def key(self) -> dict[str, object]:
        """All that its results depend on but seeds and policies."""
        own = {name: value for name, value in vars(self).items() if name not in ("name", "fleet")}
        return {**own, "fleet": fleet_key(self.fleet)}


def fleet(
    profile: str | Sequence[str] = V100,
    *,
    instances: int = 4,
    scheduler: str = "prefill-first",
    kv_tokens: int | None = KV_TOKENS,
    dt: float = 0.02,
    batching: str = "fcfs",
) -> Fleet:
    """A fleet of shipped profiles: one name for all instances, or one for each; without `kv_tokens` their own."""
    names = (profile,) * instances if isinstance(profile, str) else tuple(profile)
    profiles = [load_profile(name) for name in names]
    if kv_tokens is not None:
        profiles = [each.with_kv_tokens(kv_tokens) for each in profiles]
    return Fleet(tuple(profiles), (scheduler,) * len(names), dt=dt, batching=batching)


def entrants(context: Context, names: Sequence[str]) -> tuple[list[Candidate], tuple[str, ...]]:
    """Policies by name, trained variants by the name of the variant, and sentences on those that are not to be had."""
    found, missing = [], []
    for name in names:
        try:
            found.append(_entrant(context, name))
        except Unavailable as error:
            missing.append(str(error))
    return found, tuple(missing)


def _entrant(context: Context, name: str) -> Candidate:
    if name not in VARIANTS:
        return candidate(name)
    return dataclasses.replace(candidate(str(context.trained(name))), name=name)


def measure(
    context: Context, settings: Sequence[Setting], policies: Sequence[Candidate], seeds: tuple[int, ...] | None = None
) -> list[dict[str, Columns]]:
    """The numbers of every policy in each setting; what has been measured before is taken from the store.

    Args:
      context: of the part.
      settings: those of one size and kind of server share a compiled program.
      policies: they see the same requests of each seed.
      seeds: by default the context's.

    Returns:
      For each setting: policy -> column -> [seeds].
    """
    seeds = context.seeds if seeds is None else seeds
    missing = [_missing(context, each, policies, seeds) for each in settings]
    # Tables of one limit share a program, so all take the greatest, known ones too: it must not depend on what is kept.
    limit = 0
    if any(missing):
        limit = max(interval_limit(_tables(each, seeds), each.fleet.profiles, each.fleet.dt) for each in settings)
    for number, (setting, own) in enumerate(zip(settings, missing, strict=True)):
        if own:
            context.report(f"{setting.name} ({number + 1} of {len(settings)}): {len(own)} policies, {len(seeds)} seeds")
            _run(context, setting, own, seeds, limit)
    return [{each.name: _kept(context, setting, each, seeds) for each in policies} for setting in settings]


def _tables(setting: Setting, seeds: tuple[int, ...]) -> tuple[RequestTable, ...]:
    return tuple(setting.table(seed) for seed in seeds)


def _missing(
    context: Context, setting: Setting, policies: Sequence[Candidate], seeds: tuple[int, ...]
) -> list[Candidate]:
    return [each for each in policies if context.store.find(_key(setting, each, seeds)) is None]


def _run(context: Context, setting: Setting, policies: Sequence[Candidate], seeds: tuple[int, ...], limit: int) -> None:
    tables = _tables(setting, seeds)
    cell = Cell(setting.workload, setting.fleet, 0.0, setting.rate_per_s, seeds, tables, setting.prediction)
    rows: dict[str, dict[int, dict[str, float]]] = {each.name: {} for each in policies}
    for number, result in run_cell(cell, policies, most_intervals=limit):
        rows[result.policy][number] = facts_of(result)
    for each in policies:
        own = [rows[each.name][number] for number in range(len(seeds))]
        columns = {name: [row[name] for row in own] for name in own[0]}
        context.store.keep(_key(setting, each, seeds), columns)


def _kept(context: Context, setting: Setting, policy: Candidate, seeds: tuple[int, ...]) -> Columns:
    found = cast(dict[str, list[float]], context.store.find(_key(setting, policy, seeds)))
    columns = {name: np.asarray(values, np.float64) for name, values in found.items()}
    return {**columns, "recomputing_s": columns["recomputed_tokens"] * _prefill_s(setting.fleet)}


def _prefill_s(fleet: Fleet) -> float:
    """Seconds that a prompt token adds to a step, the mean over the servers: what a recomputed token costs."""
    return float(np.mean([profile.coefficients_ms["g"] / 1e3 for profile in fleet.profiles]))


def _key(setting: Setting, policy: Candidate, seeds: tuple[int, ...]) -> dict[str, object]:
    return {"what": "paper run", "facts": FACTS, "policy": fingerprint(policy), "seeds": seeds, **setting.key()}
