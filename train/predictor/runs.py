"""The folder of a predictor's training: its configuration, and which files it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.output import atomic_path
from jaxroute.train.load_config import to_toml
from jaxroute.train.predictor.config import PredictorTrainConfig
from jaxroute.train.predictor.load import load_predictor_config
from jaxroute.train.run_folder import CONFIG

DATA = "data.txt"
"""The prompt files, a line each."""


def begin(out: Path, config: PredictorTrainConfig, files: Sequence[Path]) -> None:
    """Makes the folder of a new run.

    Raises:
      InputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with atomic_path(out / DATA) as temporary:
            temporary.write_text("".join(f"{file.resolve()}\n" for file in files), encoding="utf-8")
        with atomic_path(out / CONFIG) as temporary:
            temporary.write_text(to_toml(config), encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error}); choose another folder") from error


def config_of(run: Path) -> PredictorTrainConfig:
    """The configuration of a run that was begun.

    Raises:
      InputError: no run is there, or its configuration is damaged.
    """
    if not (run / CONFIG).is_file() or not (run / DATA).is_file():
        raise InputError(
            f"--resume {run}: holds no training of a predictor ({CONFIG} and {DATA}); start one with --config, --data "
            "and --out"
        )
    return load_predictor_config(str(run / CONFIG))


def data_of(run: Path) -> tuple[Path, ...]:
    """The files that a run is trained on."""
    return tuple(Path(line) for line in (run / DATA).read_text(encoding="utf-8").splitlines() if line)
