"""The command line, `jaxroute ...`: sets up JAX, hands over to a subcommand, turns bad input into one line."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Runs one subcommand; exits with 2 on bad input."""
    _set_up_jax()
    # Imported late: the settings above have to come before the first import of jax.
    import tyro
    from rich.console import Console

    from jaxroute.commands.bench import Bench
    from jaxroute.commands.calibrate import Calibrate
    from jaxroute.commands.compare_live import CompareLive
    from jaxroute.commands.curves import Curves
    from jaxroute.commands.data import Data
    from jaxroute.commands.epp import Epp
    from jaxroute.commands.evaluate import Evaluate
    from jaxroute.commands.export import Export
    from jaxroute.commands.fidelity import Fidelity
    from jaxroute.commands.leaderboard import Leaderboard
    from jaxroute.commands.paper import Paper
    from jaxroute.commands.predictor import Predictor
    from jaxroute.commands.profile import Profile
    from jaxroute.commands.profiles import Profiles
    from jaxroute.commands.sensitivity import Sensitivity
    from jaxroute.commands.serve import Serve
    from jaxroute.commands.simulate import Simulate
    from jaxroute.commands.surface import SurfaceCommand
    from jaxroute.commands.sweep import Sweep
    from jaxroute.commands.testbed import TestbedCommand
    from jaxroute.commands.train import Train
    from jaxroute.errors import InputError

    commands: dict[str, Callable[..., Any]] = {
        "simulate": Simulate,
        "surface": SurfaceCommand,
        "evaluate": Evaluate,
        "leaderboard": Leaderboard,
        "paper": Paper,
        "train": Train,
        "sweep": Sweep,
        "curves": Curves,
        "export": Export,
        "predictor": Predictor,
        "calibrate": Calibrate,
        "sensitivity": Sensitivity,
        "serve": Serve,
        "epp": Epp,
        "testbed": TestbedCommand,
        "fidelity": Fidelity,
        "compare-live": CompareLive,
        "bench": Bench,
        "data": Data,
        "profiles": Profiles,
        "profile": Profile,
    }
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="jaxroute", description="Request routing for LLM serving, simulated in JAX.", args=arguments
    )
    begin_ns = time.time_ns()
    try:
        command.run()
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"jaxroute: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        said = f"jaxroute: interrupted; {_left(getattr(command, 'out', None), begin_ns)}"
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(said)
        sys.exit(130)


def _left(out: Path | None, begin_ns: int) -> str:
    """What an interrupted command leaves behind."""
    folder = out if out is not None and out.is_dir() else None
    files = [path for path in folder.rglob("*") if path.is_file()] if folder else []
    if any(path.stat().st_mtime_ns >= begin_ns for path in files):
        return f"{folder} holds what was done until then"
    return "nothing was written"


def _set_up_jax() -> None:
    """One CPU device for each core, a persistent compile cache; whatever the user has set already stays."""
    flag = "--xla_force_host_platform_device_count"
    if flag not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0))
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={cores}".strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxroute" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    # distrax's backend warns about jax's own future at import; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="tensorflow_probability")


if __name__ == "__main__":
    main()
