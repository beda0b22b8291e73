"""One trial of a sweep: `jaxroute train` in a process of its own, of which Ray Tune sees the validations."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import IO, Any

from ray import tune

from jaxroute.sweep.standings import LOG, last_words, name_of, progress_of
from jaxroute.train.figures import UNFINISHED

POLL_S = 0.5
"""Between two looks at a run."""

PATIENCE_S = 120
"""How long a run may take to save itself when it is stopped."""

DEVICES = re.compile(r"--xla_force_host_platform_device_count=\d+")

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent is gone."""


class TrainingTrial(tune.Trainable):
    """A training run whose folder is kept; started again, it goes on where it was.

    The parameters are those of `tuning.parameters`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the run, or goes on with it."""
        number = int(str(self.trial_id).rsplit("_", 1)[-1])
        over = {key: str(value) for key, value in config["over"].items()}
        self._run = Path(config["runs"]) / name_of(number, over)
        self._run.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._run / ".lock")
        self._seen = 0
        self._process = self._start(config, over)

    def step(self) -> dict[str, Any]:
        """Waits for the next validation, or for the end.

        Raises:
          RuntimeError: the run failed.
        """
        while True:
            # In this order, so that nothing is missed that came before the end.
            code = self._process.poll()
            progress = progress_of(self._run)
            if code is not None or progress.validations > self._seen:
                break
            time.sleep(POLL_S)
        self._seen = progress.validations
        if code:
            raise RuntimeError(last_words(self._run) or f"jaxroute train ended with exit code {code}")
        return {
            "score": UNFINISHED if progress.best is None else progress.best.score,
            "validations": progress.validations,
            "finished": code == 0,
            "done": code == 0,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: the run keeps checkpoints of its own, and `setup` goes on from them."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing, see `save_checkpoint`."""

    def cleanup(self) -> None:
        """Lets the run save itself, if it has not ended."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._lock.close()

    def _start(self, config: dict[str, Any], over: dict[str, str]) -> subprocess.Popen[bytes]:
        if (self._run / "config.toml").exists():
            what = ["--resume", str(self._run)]
        else:
            overrides = [f"{key}={value}" for key, value in over.items()]
            what = ["--config", config["config"], "--set", *overrides, "--out", str(self._run)]
        with (self._run / LOG).open("ab") as log:
            return subprocess.Popen(
                [*config["command"], "train", *what],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=config["cwd"],
                env=_environment(config["devices"], on_cpu=config["on_cpu"]),
                # The lock is the run's as well, so that no other goes on with it while it is still being saved.
                pass_fds=(self._lock.fileno(),),
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )


def _environment(devices: int, *, on_cpu: bool) -> dict[str, str]:
    """Of the run: on the CPU it has so many devices."""
    flags = DEVICES.sub("", os.environ.get("XLA_FLAGS", ""))
    flags = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    own = {"XLA_FLAGS": flags, "COLUMNS": "200"} | ({"JAX_PLATFORMS": "cpu"} if on_cpu else {})
    return {**os.environ, **own}


def _locked(path: Path) -> IO[str]:
    """The file, held by nobody else; waits for whoever has it.

    Raises:
      RuntimeError: it did not come free.
    """
    file = path.open("w")
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > until:
                file.close()
                raise RuntimeError(f"{path.parent}: another process trains there; end it first") from None
            time.sleep(POLL_S)


def _end_with_parent() -> None:
    """In the child: it is asked to stop when the trial is gone, however that ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
