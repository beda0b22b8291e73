"""How a sweep is run, and its settings on disk."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxroute.errors import InputError, first_line
from jaxroute.output import atomic_path
from jaxroute.sweep.space import Axis

SETTINGS, BASE = "sweep.json", "base.toml"
"""The settings, and the configuration that all trials start from, in the folder of a sweep."""


@dataclasses.dataclass(frozen=True)
class Asha:
    """When trials are stopped early (Li et al., 2018).

    Attributes:
      grace: validations that every trial gets.
      reduction: of the trials that get to a rung, one in so many goes on to the next, which is so many times further.
    """

    grace: int = 4
    reduction: int = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
      search: `grid`, all combinations of the choices; `random`, each drawn for itself.
      samples: how often the grid is gone through, each time with other draws of the ranges; under `random`, trials.
      random_state: of the draws.
      asha: when trials are stopped early; None for never.
      parallel: most trials at once.
      cpus: cores (and CPU devices) of each trial.
      gpus: GPUs of each trial.
      address: of a running Ray cluster; None for one on this machine, for this sweep.
      command: that trains.
    """

    search: Literal["grid", "random"] = "grid"
    samples: int = 1
    random_state: int = 0
    asha: Asha | None = None
    parallel: int = 1
    cpus: int = 1
    gpus: int = 0
    address: str | None = None
    command: tuple[str, ...] = (sys.executable, "-m", "jaxroute")


def write_plan(axes: Sequence[Axis], plan: Plan, folder: Path) -> None:
    """Writes the settings of a sweep."""
    data = {"folder": str(folder.resolve()), "over": [dataclasses.asdict(axis) for axis in axes], **vars(plan)}
    data["asha"] = None if plan.asha is None else vars(plan.asha)
    with atomic_path(folder / SETTINGS) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_plan(folder: Path) -> tuple[Plan, Path]:
    """The plan of a sweep, and the folder that it began in.

    Raises:
      InputError: no sweep is there, or its settings are damaged.
    """
    try:
        data = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        data.pop("over")
        where = Path(data.pop("folder"))
        asha = data.pop("asha")
        data["command"] = tuple(data["command"])
        return Plan(**data, asha=None if asha is None else Asha(**asha)), where
    except OSError as error:
        raise InputError(f"--resume {folder}: holds no sweep ({SETTINGS}); start one with --over and --out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SETTINGS}: is damaged ({first_line(error)}); start a new sweep") from error
