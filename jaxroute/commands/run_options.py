"""What the subcommands that train have in common: which run, and how one is stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from jaxroute.errors import InputError

INTERRUPTED = 130
"""Exit code of a run that was interrupted."""

Overrides = Annotated[
    tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE ...")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """A run to start or to go on with."""

    config: str | None = None
    """TOML file, or the name of a shipped configuration."""
    overrides: Overrides = ()
    """Values in place of the configuration's; may be repeated."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder to write the run to."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run to go on with."""

    @property
    def values(self) -> list[str]:
        """The overrides, one behind the other."""
        return [each for group in self.overrides for each in group]

    def check(self, **more: object) -> None:
        """Raises InputError where a run is neither fully started nor resumed; `more` is needed to start one as well."""
        needed = {"--config": self.config, **{f"--{name}": value for name, value in more.items()}, "--out": self.out}
        if self.resume is None and not all(needed.values()):
            raise InputError(f"give {_listed(list(needed), 'and')} to start a run, or --resume to go on with one")
        *first, out = needed
        if self.resume is not None and (self.overrides or any(needed.values())):
            refused = _listed([*first, "--set", out], "or")
            raise InputError(f"--resume goes on with the run as it was begun; it takes no {refused}")


@contextlib.contextmanager
def interruptible(command: str, out: Path, console: Console) -> Iterator[None]:
    """Around a run: an interruption ends with the command that goes on with it.

    Raises:
      InputError: the folder cannot be written.
    """
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped at once; go on from the last checkpoint: {command} --resume {out}", soft_wrap=True)
        sys.exit(INTERRUPTED)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error}); make room or check its permissions") from error


def stopped(command: str, out: Path, console: Console) -> None:
    """Ends the process after a run that was stopped and saved."""
    console.print(f"stopped and saved; go on with: {command} --resume {out}", soft_wrap=True)
    sys.exit(INTERRUPTED)


def _listed(words: Sequence[str], last: str) -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}"
