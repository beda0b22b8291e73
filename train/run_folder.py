"""The folder of a training run."""

from __future__ import annotations

from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.output import atomic_path
from jaxroute.train.config import TrainConfig
from jaxroute.train.load_config import load_config, to_toml

CONFIG, CHECKPOINTS, CURVE = "config.toml", "checkpoints", "learning_curve.png"


def check_new(out: Path) -> None:
    """Raises InputError where a new run would be written over something."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    if (out / CONFIG).exists():
        raise InputError(f"--out {out}: holds a training run; go on with it by --resume {out}, or give a new folder")


def begin(out: Path, config: TrainConfig) -> None:
    """Makes the folder of a new run.

    Raises:
      InputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / CONFIG) as temporary:
            temporary.write_text(to_toml(config), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error}); choose another folder") from error


def check_shared(out: Path) -> None:
    """Raises InputError where the folder that another process has begun is not seen by this one."""
    if not (out / CONFIG).is_file():
        raise InputError(f"--out {out}: process 0 has made it and this process does not see it; give a shared folder")


def config_of(run: Path) -> TrainConfig:
    """The configuration of a run that was begun.

    Raises:
      InputError: no run is there, or its configuration is damaged.
    """
    if not (run / CONFIG).is_file():
        raise InputError(f"--resume {run}: holds no training run ({CONFIG}); start one with --config and --out")
    return load_config(str(run / CONFIG))
