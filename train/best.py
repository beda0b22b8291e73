"""The best policy of a run so far, and its policy folder."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from jaxroute.export import policy_file_of
from jaxroute.policies.folder import RUN_POLICY, write_policy
from jaxroute.policies.policy_file import STATE
from jaxroute.profiles import load_profile
from jaxroute.train.config import TrainConfig
from jaxroute.train.stage import Candidate
from jaxroute.train.validation import Figures
from jaxroute.workload.prediction import DEFAULT_EDGES


class Best(NamedTuple):
    """A validated policy.

    Attributes:
      candidate: the policy.
      figures: of its validation; None where a run was stopped before its first.
      stage, update: when.
      env_steps: router intervals until then.
    """

    candidate: Candidate
    figures: Figures | None
    stage: str
    update: int
    env_steps: int

    def facts(self) -> dict[str, Any]:
        """All but the arrays, as JSON holds it; scores survive it exactly."""
        figures = None if self.figures is None else dataclasses.asdict(self.figures)
        return {
            "seed": self.candidate.seed,
            "figures": figures,
            "stage": self.stage,
            "update": self.update,
            "env_steps": self.env_steps,
        }

    @classmethod
    def of_facts(cls, facts: dict[str, Any], arrays: tuple[Any, Any]) -> Best:
        """What `facts` came from, with weights and scales."""
        known = {name: float("nan") if value is None else value for name, value in (facts["figures"] or {}).items()}
        figures = Figures(**known) if known else None
        candidate = Candidate(*arrays, facts["seed"])
        return cls(candidate, figures, facts["stage"], facts["update"], facts["env_steps"])


def better(one: Best | None, other: Best) -> Best:
    """The one with the lower score; the earlier of equals."""
    if one is None or one.figures is None:
        return other
    return other if other.figures is not None and other.figures.score < one.figures.score else one


def write_best(config: TrainConfig, best: Best, folder: Path) -> None:
    """Writes the policy folder of a run.

    Raises:
      OSError: it cannot be written.
    """
    network, fleets = config.network, config.fleets[0]
    names = dict.fromkeys(name for each in config.fleets for name in each.profiles)
    validation = {} if best.figures is None else {f"valid_{k}": v for k, v in vars(best.figures).items()}
    policy = policy_file_of(
        name=config.name,
        params=best.candidate.policy,
        scales=best.candidate.scales,
        encoding=network.observation,
        buckets=len(DEFAULT_EDGES) if network.observation == "paper" else 0,
        hidden=network.hidden,
        holds=network.holds,
        form=network.form,
        instances=fleets.instances if network.form == STATE else 0,
        router_order=fleets.router_order,
        ageing=fleets.ageing,
        dt=fleets.turn_s,
        profiles=tuple(load_profile(name).name for name in names),
        spf_edges=fleets.spf_edges,
        training={
            "config": config.name,
            "seed": best.candidate.seed,
            "stage": best.stage,
            "update": best.update,
            "env_steps": best.env_steps,
            **validation,
            "jaxroute": version("jaxroute"),
        },
    )
    write_policy(policy, folder / RUN_POLICY)
