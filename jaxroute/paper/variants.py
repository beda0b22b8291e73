"""The policies that are trained for the report, each when a part first asks for it."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jaxroute.output import atomic_path
from jaxroute.paper.part import Context, Unavailable

if TYPE_CHECKING:
    from jaxroute.train.config import TrainConfig

FINISHED = "finished"
"""File in the folder of a run that has come to its end."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A training run.

    Attributes:
      config: name of a shipped configuration.
      overrides: in place of the configuration's values.
      steps: key of the router intervals to train for.
      effort: that many times what the report trains for.
    """

    config: str
    overrides: tuple[str, ...] = ()
    steps: str = "ppo.total_steps"
    effort: float = 1.0

    def settings(self, name: str, steps: int) -> tuple[str, ...]:
        """What `jaxroute train --set` is given."""
        return (f"name={name}", *self.overrides, f"{self.steps}={round(self.effort * steps)}")

    def command(self, name: str, steps: int) -> str:
        """The command that trains it alone."""
        return f"jaxroute train --config {self.config} --set {shlex.join(self.settings(name, steps))} --out RUN"


GUIDANCE = {"guided": "decaying", "aware": "constant", "baseline": "none"}
"""The paper's names of its variants, and how the mixing penalty is weighted in each."""

ON_A100 = (
    "workloads.requests=2000",
    "workloads.loads=[0.9,3.6]",
    'fleets.0.profiles=["a100-80gb-llama31-8b"]',
    'fleets.0.schedulers=["prefill-first","chunked"]',
    "fleets.0.dt=0.01",
)
EIGHT = ("fleets.0.instances=8", "fleets.0.lanes=16", "fleets.0.dt=0.01")

CURVE = "-curve"
"""Ending of a variant of several seeds."""

SEEDS = "seeds=3"
"""Of the runs whose learning curves are compared."""

MIXING_EFFORT = 0.3
"""Of the Double DQN that has the mixing penalty alone to learn."""

DQN_CURVES: dict[str, tuple[str, ...]] = {
    "dqn": (),
    "dqn-baseline": ("reward.guidance=none",),
    "dqn-20": ("dqn.exploration_episodes=20",),
    "dqn-every": (f"dqn.exploration_episodes={2**30}",),
    "dqn-steady": ("dqn.exploration=0.1", "dqn.exploration_decay=1.0", "dqn.final_exploration=0.1"),
}
"""Double DQN with the slides' schedule of exploration, without guidance, with the text's schedule, with that of the
slides in every episode, and with no schedule."""

MIXING = ("reward.kind=mixing", "reward.guidance=constant", "dqn.reward_unit=1", "network.holds=false")
"""Double DQN with no reward but the mixing penalty."""


def _variants() -> dict[str, Variant]:
    found = {}
    for ending, more in (("", ()), ("-a100", ON_A100), ("-8", EIGHT)):
        for name, guidance in GUIDANCE.items():
            found[name + ending] = Variant("five-task", (f"reward.guidance={guidance}", *more))
    found |= {
        f"{name}{CURVE}": Variant("five-task", (f"reward.guidance={kind}", SEEDS)) for name, kind in GUIDANCE.items()
    }
    found |= {f"{name}{CURVE}": Variant("dqn", (*own, SEEDS), "dqn.total_steps") for name, own in DQN_CURVES.items()}
    found[f"dqn-mixing{CURVE}"] = Variant("dqn", (*MIXING, SEEDS), "dqn.total_steps", MIXING_EFFORT)
    return found | {"dqn": Variant("dqn", steps="dqn.total_steps")}


VARIANTS: dict[str, Variant] = _variants()
"""By name: the three of the paper on its four V100; `-a100` and `-8` are those that are trained again for other servers
(up to 80 requests/s, 3.5 times what those can do with so small a cache) and for eight, as the paper does; `dqn` is the
paper's own algorithm; `-curve` are those of several seeds, but in the short form."""


def trained(context: Context, name: str) -> Path:
    """The run folder of a variant, see `Context.trained`."""
    from jaxroute.train.load_config import load_config, shipped_configs, to_toml

    # In the short form one run of one seed serves both for the curves and for the tables.
    name = name.removesuffix(CURVE) if context.quick else name
    variant = VARIANTS[name]
    if variant.config not in shipped_configs():
        raise Unavailable(f"{name}: left out, this version has no configuration {variant.config} to train it by")
    config = load_config(variant.config, variant.settings(name, context.effort.train_steps))
    digest = hashlib.sha256(to_toml(config).encode()).hexdigest()[:8]
    folder = context.out / "trained" / f"{name}-{digest}"
    if not (folder / FINISHED).exists():
        context.report(f"training {name}: {variant.command(name, context.effort.train_steps)}")
        _train(config, folder, variant.command(name, context.effort.train_steps), context.report)
    return folder


class _Watcher:
    """Reports every validation."""

    def __init__(self, name: str, report: Callable[[str], None]) -> None:
        self._name, self._report = name, report

    def moved(self, stage: str, done: int, total: int, gain: float) -> None:
        """See `jaxroute.train.loop.Watcher.moved`."""

    def said(self, text: str) -> None:
        """See `jaxroute.train.loop.Watcher.said`."""
        self._report(f"training {self._name}: {text}")


def _train(config: TrainConfig, folder: Path, command: str, report: Callable[[str], None]) -> None:
    """Begins a run, or goes on with it, and marks it with its command when it has come to its end.

    Raises:
      KeyboardInterrupt: it was asked to stop, and has saved; in its last update it has come to its end as well.
    """
    from jaxroute.train import run_folder
    from jaxroute.train.interrupt import stop_requests
    from jaxroute.train.loop import Training

    with stop_requests() as stop:
        training = Training(config, folder, _Watcher(config.name, report))
        if not (folder / run_folder.CONFIG).exists():
            run_folder.begin(folder, config)
        if training.run(stop):
            with atomic_path(folder / FINISHED) as temporary:
                temporary.write_text(command + "\n", encoding="utf-8")
            if not stop():
                return
        raise KeyboardInterrupt
