"""The host side of a training run: calls, checks, validations, checkpoints, and the files that show how it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax

from jaxroute.devices import lane_mesh
from jaxroute.plots import save
from jaxroute.train import run_folder
from jaxroute.train.best import Best, better, write_best
from jaxroute.train.checkpoint import Checkpoints
from jaxroute.train.config import TrainConfig
from jaxroute.train.distributed import agreed, check_same, is_first
from jaxroute.train.dqn_stage import DqnStage
from jaxroute.train.evolution_stage import EvolutionStage
from jaxroute.train.gradient import gradient_updates
from jaxroute.train.gradient_stage import GradientStage
from jaxroute.train.ppo import initial_state, make_learner
from jaxroute.train.ppo_stage import PpoStage
from jaxroute.train.scalars import FILE, VALID, Row, Scalars, Unwritten
from jaxroute.train.scenarios import make_groups
from jaxroute.train.stage import Candidate, Stage, State, devices_for, is_validated
from jaxroute.train.validation import Figures, Validator
from jaxroute.training_plots import learning_curve

STAGES = (PpoStage.name, GradientStage.name, EvolutionStage.name, DqnStage.name)


class Watcher(Protocol):
    """Shows a run to whoever started it."""

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        """After every call; `gain` is above 0 where the policy is better than round robin (or the twin)."""

    def said(self, text: str) -> None:
        """A line, at every validation, and about the run as a whole."""


class Training:
    """A run that can be stopped after any call and goes on from there as if nothing had been.

    Of several processes (see `distributed`) each has the whole of it; the first writes, all take part in checkpoints.

    Attributes:
      best: the best validated policy so far.
    """

    def __init__(self, config: TrainConfig, out: Path, watcher: Watcher) -> None:
        """Makes what the run plays; nothing is written yet.

        Raises:
          InputError: a configuration that cannot be run.
        """
        self._config = config
        self._out = out
        self._watcher = watcher
        self._groups = make_groups(config)
        check_same("fleets and workloads", [group.params for group in self._groups])
        self._mesh = lane_mesh(devices_for(config))
        self._learner = make_learner(config, tuple(group.env for group in self._groups))
        self._validate = Validator(config, self._learner.network, self._mesh)
        self._collapsed = [0] * config.seeds
        self.best: Best | None = None

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Goes on from the last checkpoint, or from the start without one.

        Args:
          stop: asked after every call; if so, the run is saved and ends.

        Returns:
          Whether the run is finished.

        Raises:
          DivergedError: the run has gone wrong; the last checkpoint and policy stay.
          InputError: a checkpoint of something else.
        """
        self._checkpoints = Checkpoints(self._out / run_folder.CHECKPOINTS)
        facts = self._checkpoints.facts() or {"stage": "", "update": 0, "seconds": 0.0}
        self._tell_spread(facts)
        self._began = time.monotonic() - facts["seconds"]
        stage, update = facts["stage"] or STAGES[0], facts["update"]
        self._scalars = (
            Scalars(self._out, stage_order=STAGES, stage=stage, update=update) if is_first() else Unwritten()
        )
        try:
            return self._stages(facts, stop)
        finally:
            self._scalars.close()
            self._checkpoints.close()

    def _stages(self, facts: dict[str, Any], stop: Callable[[], bool]) -> bool:
        for name in self._planned():
            # The stages before that of the checkpoint are over.
            if facts["stage"] and STAGES.index(name) < STAGES.index(facts["stage"]):
                continue
            stage = self._stage(name)
            state, done = self._start(stage, facts)
            if not self._to_end(stage, state, done, stop):
                return False
        if self.best is not None:
            self._write(self.best)
        if is_first():
            save(learning_curve([(self._config.name, self._out / FILE)]), self._out / run_folder.CURVE)
        return True

    def _planned(self) -> list[str]:
        own = self._config
        sizes = (own.ppo.total_steps, own.gradient.total_steps, own.evolution.generations, own.dqn.total_steps)
        return [name for name, size in zip(STAGES, sizes, strict=True) if size > 0]

    def _stage(self, name: str) -> Stage:
        if name == GradientStage.name:
            return GradientStage(self._config, self._groups, self._mesh)
        if name == DqnStage.name:
            return DqnStage(self._config, self._groups, self._mesh)
        if name == PpoStage.name:
            return PpoStage(self._config, self._groups, self._mesh, self._learner)
        return EvolutionStage(self._config, self._learner, self._groups, self._mesh)

    def _start(self, stage: Stage, facts: dict[str, Any]) -> tuple[State, int]:
        """The stage's state and its updates so far: from the checkpoint if that is of this stage, else before any."""
        if facts["stage"] != stage.name:
            first = stage.initial(None if self.best is None else self.best.candidate)
            check_same(f"the first state of {stage.name}", first)
            return stage.placed(first), 0
        saved = self._checkpoints.restore({"state": stage.like(), "best": self._like_a_policy()})
        self._collapsed = facts["collapsed"]
        self.best = Best.of_facts(facts["best"], saved["best"]) if facts["best"] else None
        return stage.placed(saved["state"]), facts["update"]

    def _to_end(self, stage: Stage, state: State, done: int, stop: Callable[[], bool]) -> bool:
        """Runs the stage; whether it came to its end."""
        while done < stage.total:
            before = done
            state, metrics = stage.advance(state, min(stage.per_call, stage.total - done))
            done += len(metrics[0])
            self._collapsed = stage.check(state, metrics, done, self._collapsed)
            candidates = stage.candidates(state)
            validated = is_validated(before, done, stage.total)
            figures = self._validated(stage, candidates, done) if validated else []
            self._scalars.write(self._rows(stage, candidates, metrics, done, figures))
            self._watcher.moved(stage.name, done, stage.total, stage.gain(metrics))
            stopping = agreed(stop()) and not (done == stage.total and stage.name == self._planned()[-1])
            if validated or stopping:
                self._save(stage, state, candidates, done)
            if stopping:
                return False
        return True

    def _validated(self, stage: Stage, candidates: Sequence[Candidate], done: int) -> list[Figures]:
        """The figures of each seed's policy; the best policy so far is written."""
        found = []
        for candidate in candidates:
            figures = self._validate(candidate.policy, candidate.scales)
            found.append(figures)
            before = self.best
            self.best = better(before, Best(candidate, figures, stage.name, done, stage.env_steps(done)))
            note = "" if self.best is before else ", the best so far"
            self._watcher.said(f"{stage.name} {done}/{stage.total}, seed {candidate.seed}: {figures.text}{note}")
            if self.best is not before:
                self._write(self.best)
        return found

    def _rows(
        self, stage: Stage, candidates: Sequence[Candidate], metrics: Any, done: int, figures: list[Figures]
    ) -> Iterator[Row]:
        """Of every update and seed of a call; those of the last update have the figures."""
        first = done - len(metrics[0]) + 1
        for update in range(first, done + 1):
            for number, candidate in enumerate(candidates):
                own = {name: float(values[update - first, number]) for name, values in metrics._asdict().items()}
                known = vars(figures[number]) if figures and update == done else {}
                yield {
                    "stage": stage.name,
                    "update": update,
                    "env_steps": stage.env_steps(update),
                    "seed": candidate.seed,
                    "seconds": round(time.monotonic() - self._began, 3),
                    **own,
                    **{VALID + name: value for name, value in known.items()},
                }

    def _save(self, stage: Stage, state: State, candidates: Sequence[Candidate], done: int) -> None:
        """A checkpoint; and a policy, should there be none yet."""
        first = candidates[0]
        kept = first if self.best is None else self.best.candidate
        facts = {
            "stage": stage.name,
            "update": done,
            "seconds": time.monotonic() - self._began,
            "collapsed": self._collapsed,
            "best": None if self.best is None else self.best.facts(),
            **self._spread(),
        }
        # Numbers of checkpoints ascend from stage to stage.
        before = {PpoStage.name: 0, DqnStage.name: 0, GradientStage.name: self._learner.updates}
        number = done + before.get(stage.name, self._learner.updates + gradient_updates(self._config))
        self._checkpoints.save(number, {"state": state, "best": (kept.policy, kept.scales)}, facts)
        if self.best is None:
            self._write(Best(first, None, stage.name, done, stage.env_steps(done)))

    def _write(self, best: Best) -> None:
        """The policy folder."""
        if is_first():
            write_best(self._config, best, self._out)

    def _spread(self) -> dict[str, int]:
        """Over what the run is spread, for the facts of a checkpoint."""
        lanes = sum(len(group.scenarios) for group in self._validate.groups)
        return {"processes": jax.process_count(), "devices": self._mesh.size, "validation_lanes": lanes}

    def _tell_spread(self, facts: dict[str, Any]) -> None:
        """Says where the run goes on over others than before."""
        own = self._spread()
        if all(facts.get(name, value) == value for name, value in own.items()):
            return
        before, now = (f"{each['devices']} devices of {each['processes']} processes" for each in (facts, own))
        lanes = facts["validation_lanes"], own["validation_lanes"]
        change = "" if lanes[0] == lanes[1] else f"; validated on {lanes[1]} lanes from here on, before on {lanes[0]}"
        self._watcher.said(f"was on {before}, goes on over {now}: the same but for rounding{change}")

    def _like_a_policy(self) -> Any:
        """Shapes and types of weights and scales."""
        params = tuple(group.params for group in self._groups)

        def made() -> tuple[Any, Any]:
            state = initial_state(self._learner, params, jax.random.key(0))
            return state.policy, state.scales.fixed()

        return jax.eval_shape(made)
